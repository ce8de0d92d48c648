"""Settings of the retrieval server, apart from it: reading a configuration imports no web framework."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

_CONFIG = ConfigDict(extra="forbid", frozen=True)


class LimitsConfig(BaseModel):
    """What one request may ask for. Beyond it the answer is 413 or 422, before anything is searched."""

    model_config = _CONFIG

    max_users: int = Field(256, ge=1, description="Users of one request")
    max_k: int = Field(1_000, ge=1, description="Items asked for a user")
    max_history: int = Field(1_000, ge=1, description="Items of a history given with a request")
    max_filter_ids: int = Field(10_000, ge=1, description="Ids in `only` or `exclude`, and values in `where`")
    max_body_bytes: int = Field(1_048_576, ge=1_024, description="Bytes of a request's body")


class EngineConfig(BaseModel):
    """How requests share the search thread."""

    model_config = _CONFIG

    batch_users: int = Field(
        64,
        ge=1,
        description="Users answered by one search: whatever waits, up to so many. More answer more users a "
        "second, and let the first of them wait for the last",
    )
    threads: int = Field(
        os.cpu_count() or 1,
        ge=1,
        description="Threads that share the users of a batch; few users are searched by one of them",
    )
    max_waiting_users: int = Field(
        1_024,
        ge=1,
        description="Users that wait or are searched for; beyond it the answer is 503, so that a queue never "
        "grows longer than callers are ready to wait",
    )
    stuck_after_s: float = Field(
        30.0, gt=0, description="A search or a swap longer than this makes /healthz fail; above the longest"
    )


class ShadowConfig(BaseModel):
    """A second version that answers a sample of the requests, off the answers' path."""

    model_config = _CONFIG

    alias: str | None = Field(None, description="Alias scored beside the served one; null scores none")
    share: float = Field(0.1, gt=0, le=1, description="Share of the requests that it answers too")
    max_waiting: int = Field(
        64,
        ge=1,
        description="Sampled requests that may wait for it; more are left out and counted",
    )
    window: int = Field(1_000, ge=1, description="Newest compared users over which differences are told")


class FreshnessConfig(BaseModel):
    """How the server follows the trainer between versions; where to is `deltas.target`."""

    model_config = _CONFIG

    poll_s: float = Field(0.2, gt=0, description="Between two looks for deltas")
    patience_s: float = Field(
        10.0,
        ge=0,
        description="How long no delta may follow what is served, while there are later ones, before the "
        "version is loaded anew",
    )
    max_recall_drop: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="Deltas are held while the trainer's own recall is this share below the one that the "
        "served version was promoted with; null holds none",
    )


class ServeConfig(BaseModel):
    """The retrieval server, `hsnn serve`."""

    model_config = _CONFIG

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8_000, ge=0, le=65_535, description="Port; 0 picks a free one")
    alias: str = Field("champion", min_length=1, description="Alias of the registered model that is followed")
    poll_s: float = Field(1.0, gt=0, description="Between two looks at the alias")
    retry_s: float = Field(
        60.0, gt=0, description="Before a version that did not load is tried again; a moved alias is at once"
    )
    cache: Path | None = Field(
        None,
        description="Folder that keeps a copy of the served version, so that a server starts while the "
        "registry is away; of one server alone. null keeps none",
    )
    timeout_s: float = Field(
        2.0, gt=0, description="Longest time from a request's last byte to its answer; then it is 504"
    )
    linger_s: float = Field(
        0.0,
        ge=0,
        description="After SIGTERM, how long requests are still taken while /readyz already says no: as long "
        "as a balancer needs to notice",
    )
    drain_s: float = Field(10.0, ge=0, description="After SIGTERM, longest wait for requests in hand")
    token: SecretStr | None = Field(
        None,
        description="Bearer token that requests must carry, but for /healthz and /readyz; null asks for none",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may read answers; each by its full name, never `*`"
    )
    limits: LimitsConfig = Field(LimitsConfig())
    engine: EngineConfig = Field(EngineConfig())
    freshness: FreshnessConfig = Field(FreshnessConfig())
    shadow: ShadowConfig = Field(ShadowConfig())

    @field_validator("cors_origins")
    @classmethod
    def _no_wildcard(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        wild = [origin for origin in origins if "*" in origin]
        if wild:
            raise ValueError(f"{', '.join(wild)}: name each origin in full, such as https://app.example.com")
        return origins

    @field_validator("token")
    @classmethod
    def _token_is_sendable(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not (
            token.get_secret_value().isascii() and token.get_secret_value().strip()
        ):
            raise ValueError("a token is made of ASCII characters, since it travels in a header")
        return token
