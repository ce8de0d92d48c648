"""The drifting world, streamed to Kafka: births and deaths on the item topic, events on the event topic."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from consumers import columns as c
from consumers.codecs import ARROW_TYPE, CONTENT_TYPE, JSON_TYPE, encode_arrow, encode_events_json
from consumers.kafka_config import KafkaConfig
from consumers.kafka_sink import Progress
from consumers.outbox import Outbox
from consumers.pacing import Backlog, Pace
from consumers.schema import Feature, FeatureKind
from pipeline.simulator import Step, World

# What the world's items, users and events declare, in the words of the configuration.
ITEM_FEATURES = (
    Feature(name="top_topic", kind=FeatureKind.CATEGORICAL),
    Feature(name="subtopic", kind=FeatureKind.CATEGORICAL),
    Feature(name="brand", kind=FeatureKind.CATEGORICAL),
    Feature(name="price", kind=FeatureKind.NUMERIC),
    Feature(name="title", kind=FeatureKind.TEXT),
)
USER_FEATURES = (
    Feature(name="segment", kind=FeatureKind.CATEGORICAL),
    Feature(name="device", kind=FeatureKind.CATEGORICAL),
)
CONTEXT_FEATURES = (
    Feature(name="hour_band", kind=FeatureKind.CATEGORICAL),
    Feature(name="surface", kind=FeatureKind.CATEGORICAL),
)


class WorldPublisher:
    """Streams a world's steps; an item's birth is on the broker before its first event."""

    def __init__(
        self, config: KafkaConfig, pace: Pace, backlog: Backlog | None, rows_per_message: int
    ) -> None:
        self._config, self._pace, self._backlog = config, pace, backlog
        self._rows_per_message = rows_per_message

    def publish(self, world: World, num_events: int) -> Iterator[Progress]:
        """Stream ``num_events`` events; the first progress comes once users and first items are there."""
        outbox = Outbox(self._config.connection())
        done = 0
        try:
            if self._config.user_topic is not None:
                self._upsert(outbox, self._config.user_topic, c.USER_ID, world.users())
            for step in world.stream(num_events, self._rows_per_message):
                self._publish_lives(outbox, step)
                if done == 0:
                    outbox.flush()
                    yield Progress(0, num_events)
                self._publish_events(outbox, step.events, done)
                done += step.events.num_rows
                yield Progress(done, num_events)
            outbox.flush()
        finally:
            outbox.close()

    def _publish_lives(self, outbox: Outbox, step: Step) -> None:
        topic = self._config.item_topic
        if topic is None:
            return
        self._upsert(outbox, topic, c.ITEM_ID, step.born)
        for item_id in step.died.tolist():
            outbox.send(topic, key=str(item_id).encode(), value=None)
        if step.born.num_rows or len(step.died):
            outbox.flush()

    def _publish_events(self, outbox: Outbox, events: pa.RecordBatch, done: int) -> None:
        if self._backlog is not None:
            self._backlog.wait(done)
        if not events.num_rows:
            return
        self._pace.wait(done, pa.Table.from_batches([events]))
        headers = [(CONTENT_TYPE, ARROW_TYPE)]
        outbox.send(
            self._config.event_topic, key=None, value=encode_arrow(events), headers=headers, partition=0
        )
        if self._pace.is_live:
            outbox.flush()

    @staticmethod
    def _upsert(outbox: Outbox, topic: str, id_column: str, rows: pa.RecordBatch) -> None:
        table = pa.Table.from_batches([rows])
        keys = table.column(id_column).cast(pa.string()).to_pylist()
        for key, value in zip(keys, encode_events_json(table), strict=True):
            outbox.send(topic, key=key.encode(), value=value, headers=[(CONTENT_TYPE, JSON_TYPE)])
