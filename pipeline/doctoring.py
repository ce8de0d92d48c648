"""What ``hsnn doctor`` has to look at, from the settings."""

from __future__ import annotations

from pipeline.config import Settings
from pipeline.doctor import DoctorConfig


def doctor_config(settings: Settings) -> DoctorConfig:
    kafka = settings.kafka
    servers = kafka.bootstrap_servers
    options = {k: v for k, v in kafka.connection().items() if k not in ("bootstrap_servers", "client_id")}
    return DoctorConfig(
        bootstrap_servers=servers if isinstance(servers, str) else ",".join(servers),
        kafka_options={**options, **kafka.options},
        event_topics=(kafka.event_topic,),
        entity_topics=tuple(topic for topic in (kafka.item_topic, kafka.user_topic) if topic),
        group_id=kafka.group_id,
        tracking_uri=settings.registry_config().tracking_uri or "",
        home=settings.home,
    )
