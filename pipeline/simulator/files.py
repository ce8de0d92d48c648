"""A world written to Parquet: events, items, users, and the truth at several times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from consumers import columns as c
from pipeline.simulator.config import HOUR_BAND, HOUR_BANDS, SURFACE, SURFACES
from pipeline.simulator.items import ITEM_SCHEMA
from pipeline.simulator.tables import Ints
from pipeline.simulator.world import EVENT_SCHEMA, Context, World

TIMESTAMP_MS = "timestamp_ms"
BORN_MS = "born_ms"
DIED_MS = "died_ms"
RANK = "rank"
UTILITY = "utility"

TRUTH_SCHEMA = pa.schema(
    {
        TIMESTAMP_MS: pa.int64(),
        c.USER_ID: pa.int64(),
        HOUR_BAND: pa.string(),
        SURFACE: pa.string(),
        RANK: pa.int32(),
        c.ITEM_ID: pa.int64(),
        UTILITY: pa.float32(),
    }
)
# Events held before they are written: bounds memory to some tens of megabytes, whatever the log's length.
ROWS_PER_GROUP = 100_000


def write_parquet(
    world: World,
    num_events: int,
    out_dir: Path,
    truth_times: int = 5,
    truth_users: int = 200,
    truth_k: int = 100,
) -> None:
    """Run a fresh ``world`` for ``num_events`` events and write four files to ``out_dir``.

    ``events.parquet`` (``timestamp_ms`` in place of ``event_time``, in order of time), ``items.parquet``
    (with ``born_ms``, and ``died_ms``: null while alive), ``users.parquet``, and ``truth.parquet``: for the
    same sampled users, the best items at ``truth_times`` moments, evenly spread, the last at the end.

    Raises:
        ValueError: the world has moved already, so the files could not tell its beginning.
    """
    if world.num_impressions:
        raise ValueError("write_parquet needs a fresh world: this one has shown impressions already")
    out_dir.mkdir(parents=True, exist_ok=True)
    log = _Log()
    schema = EVENT_SCHEMA.set(EVENT_SCHEMA.get_field_index(c.EVENT_TIME), pa.field(TIMESTAMP_MS, pa.int64()))
    with (
        pq.ParquetWriter(out_dir / "events.parquet", schema, compression="zstd") as events,
        pq.ParquetWriter(out_dir / "truth.parquet", TRUTH_SCHEMA, compression="zstd") as truth,
    ):
        for part in _parts(num_events, truth_times):
            for group in log.groups(world, part):
                events.write_table(group.rename_columns(schema.names))
            truth.write_table(_truth(world, truth_users, truth_k))
    pq.write_table(log.items(), out_dir / "items.parquet", compression="zstd")
    pq.write_table(pa.Table.from_batches([world.users()]), out_dir / "users.parquet", compression="zstd")


def _parts(total: int, count: int) -> list[int]:
    edges = np.linspace(0, total, count + 1).round().astype(int)
    return [part for part in np.diff(edges).tolist() if part]


class _Log:
    """Collects the catalogue while events pass through in groups."""

    def __init__(self) -> None:
        self._born: list[pa.Table] = []
        self._died: list[tuple[Ints, int]] = []

    def groups(self, world: World, num_events: int) -> Iterator[pa.Table]:
        held: list[pa.RecordBatch] = []
        for step in world.stream(num_events):
            if step.born.num_rows:
                times = pa.array(np.full(step.born.num_rows, step.time_ms))
                self._born.append(pa.Table.from_batches([step.born]).append_column(BORN_MS, times))
            self._died.append((step.died, step.time_ms))
            held.append(step.events)
            if sum(batch.num_rows for batch in held) >= ROWS_PER_GROUP:
                yield pa.Table.from_batches(held)
                held = []
        if held:
            yield pa.Table.from_batches(held)

    def items(self) -> pa.Table:
        """All items ever born, by id."""
        table = pa.concat_tables(self._born)
        died_ms, dead = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, bool)
        for ids, time_ms in self._died:
            died_ms[ids - 1], dead[ids - 1] = time_ms, True
        assert table.schema.names[: len(ITEM_SCHEMA)] == ITEM_SCHEMA.names
        return table.append_column(DIED_MS, pa.array(died_ms, mask=~dead))


def _truth(world: World, num_users: int, k: int) -> pa.Table:
    """The best items of sampled users now, each user in a context of its own."""
    rng = np.random.default_rng(world.config.seed)
    num_users, k = min(num_users, world.config.num_users), min(k, len(world.live_item_ids()))
    user_ids = np.sort(rng.permutation(world.config.num_users)[:num_users] + 1)
    hours = pa.array(HOUR_BANDS).take(pa.array(rng.integers(len(HOUR_BANDS), size=num_users)))
    surfaces = pa.array(SURFACES).take(pa.array(rng.integers(len(SURFACES), size=num_users)))
    context = Context(hours.to_pylist(), surfaces.to_pylist())
    best = world.true_best_items(user_ids, k, context)
    each = pa.array(np.repeat(np.arange(num_users), k))
    columns = [
        pa.array(np.full(num_users * k, world.now_ms)),
        pa.array(user_ids).take(each),
        hours.take(each),
        surfaces.take(each),
        pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), num_users)),
        pa.array(best.ravel()),
        pa.array(world.true_utility(user_ids, best, context).ravel()),
    ]
    return pa.table(columns, schema=TRUTH_SCHEMA)
