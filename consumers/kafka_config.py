"""Connection settings, under kafka-python's own names."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

_CONNECTION = (
    "bootstrap_servers",
    "client_id",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "ssl_check_hostname",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_crlfile",
    "ssl_password",
    "ssl_ciphers",
)
_CONSUMER = (
    "group_id",
    "group_instance_id",
    "session_timeout_ms",
    "max_poll_records",
    "max_poll_interval_ms",
    "fetch_max_bytes",
    "max_partition_fetch_bytes",
    "receive_message_max_bytes",
)


class KafkaConfig(BaseModel):
    """How to reach Kafka and what to read. Names that kafka-python knows mean what they mean there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bootstrap_servers: str | list[str] = Field(default="localhost:9092", description="host:port of brokers")
    group_id: str = Field(default="hsnn", description="Group under which offsets are committed, as a hint")
    client_id: str = Field(default="hsnn", description="Name of this client in the broker's logs and quotas")
    group_instance_id: str | None = Field(default="hsnn-trainer", description="Static member id")
    session_timeout_ms: int = Field(default=45_000, gt=0, description="As in kafka-python")
    max_poll_records: int = Field(default=10_000, gt=0, description="Records decoded at once")
    max_poll_interval_ms: int = Field(default=300_000, gt=0, description="As in kafka-python")
    fetch_max_bytes: int = Field(default=64 << 20, gt=0, description="As in kafka-python")
    max_partition_fetch_bytes: int = Field(default=16 << 20, gt=0, description="As in kafka-python")
    receive_message_max_bytes: int = Field(
        default=10**9,
        gt=0,
        description="Largest response accepted. kafka-python's 100 MB stops for ever, without an exception, "
        "at a broker that ignores fetch limits",
    )
    security_protocol: str = Field(
        default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
    )
    sasl_mechanism: str | None = Field(default=None, description="PLAIN, SCRAM-SHA-256, GSSAPI, ...")
    sasl_plain_username: str | None = Field(default=None, description="User for PLAIN and SCRAM")
    sasl_plain_password: SecretStr | None = Field(default=None, description="Password for PLAIN and SCRAM")
    sasl_kerberos_service_name: str | None = Field(default=None, description="As in kafka-python")
    sasl_kerberos_domain_name: str | None = Field(default=None, description="As in kafka-python")
    ssl_check_hostname: bool | None = Field(default=None, description="As in kafka-python")
    ssl_cafile: str | None = Field(default=None, description="Certificate authority file")
    ssl_certfile: str | None = Field(default=None, description="Client certificate file")
    ssl_keyfile: str | None = Field(default=None, description="Client key file")
    ssl_crlfile: str | None = Field(default=None, description="Certificate revocation list")
    ssl_password: SecretStr | None = Field(default=None, description="Password of the client key")
    ssl_ciphers: str | None = Field(default=None, description="As in kafka-python")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Any other kafka-python consumer option, passed on as it is"
    )
    event_topic: str = Field(default="hsnn.events", min_length=1, description="Interaction events")
    item_topic: str | None = Field(default="hsnn.items", description="Item changes; null where there is none")
    user_topic: str | None = Field(default="hsnn.users", description="User changes; null where there is none")
    queue_bytes: int = Field(default=64 << 20, gt=0, description="Decoded batches held ready for the trainer")
    fencing: bool = Field(
        default=True,
        description="Claim the state in a group `<group_id>.writer.<lineage>`, so that a second daemon on a "
        "copy of it stops at once; false where the client may not join such a group",
    )
    max_wait_s: float | None = Field(
        default=None,
        gt=0,
        description="Hand out a partial batch after this long; null never does, so batches can be replayed",
    )

    def connection(self) -> dict[str, Any]:
        """Options that consumers, producers and admin clients share."""
        return self._set(_CONNECTION)

    def consumer(self) -> dict[str, Any]:
        """All options of the consumer. Offsets are ours: no auto-commit, and no guess where none is held."""
        ours = {"enable_auto_commit": False, "auto_offset_reset": "none", "allow_auto_create_topics": False}
        return self._set(_CONNECTION + _CONSUMER) | self.options | ours

    def onlooker(self, **more: Any) -> dict[str, Any]:
        """Options of a consumer that belongs to no group and leaves no trace."""
        return self.consumer() | {"group_id": None, "group_instance_id": None} | more

    def topics(self) -> list[str]:
        """Every topic read, catalogue first."""
        return [topic for topic in (self.item_topic, self.user_topic, self.event_topic) if topic]

    def _set(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in values.items()
            if value is not None
        }
