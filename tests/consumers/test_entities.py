from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from consumers import entities
from consumers.batch import EntityBatch, EntityKind, Position
from consumers.codecs import decode_entities, encode_arrow
from consumers.entities import MAX_ROWS, can_follow, entity_batches, joined
from tests.consumers.samples import ITEMS, FakeRecord, item_table


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_newest_change_of_an_id_wins(changes: list[tuple[int, bool]]) -> None:
    records = [
        FakeRecord(n, b'{"item_id":%d,"brand":"%d","title":""}' % (item, n) if upsert else None, b"%d" % item)
        for n, (item, upsert) in enumerate(changes)
    ]
    (batch,) = entity_batches(
        decode_entities(records, ITEMS), EntityKind.ITEM, "items:0", Position(len(changes))
    )
    newest = dict(changes)
    assert sorted(batch.upserts.column("item_id").to_pylist()) == sorted(k for k, v in newest.items() if v)
    assert sorted(batch.removed.tolist()) == sorted(k for k, v in newest.items() if not v)


def test_the_features_are_those_of_the_newest_upsert() -> None:
    old, new = item_table(3), item_table(3).set_column(1, "brand", [["x", "y", "z"]])
    records = [FakeRecord(0, encode_arrow(old)), FakeRecord(1, encode_arrow(new))]
    (batch,) = entity_batches(decode_entities(records, ITEMS), EntityKind.ITEM, "items:0", Position(2))
    assert batch.upserts.column("brand") == ITEMS.normalise(new).rows.column("brand")


def test_a_large_message_is_cut_and_every_change_is_in_one_batch_only() -> None:
    num_items = 2 * entities.MAX_ROWS + 5
    value = encode_arrow(item_table(num_items))
    records = [
        FakeRecord(0, None, b"1"),
        FakeRecord(1, value),
        FakeRecord(2, None, b"0"),
        FakeRecord(3, b"{"),
    ]
    decoded = decode_entities(records, ITEMS)
    batches = list(entity_batches(decoded, EntityKind.ITEM, "items:0", Position(4)))
    assert [batch.positions["items:0"] for batch in batches] == [
        (1, entities.MAX_ROWS),
        (1, 2 * entities.MAX_ROWS),
        (4, 0),
    ]
    assert [len(batch.upserts) for batch in batches] == [entities.MAX_ROWS, entities.MAX_ROWS, 5]
    assert [batch.removed.tolist() for batch in batches] == [[], [], [0]]
    assert [dict(batch.rejected) for batch in batches] == [{}, {}, {"not_json": 1}]


@given(
    changes=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_joined_batches_are_what_reading_at_once_gives(
    changes: list[tuple[int, bool]], cuts: list[int]
) -> None:
    records = [
        FakeRecord(
            offset=offset,
            key=str(item).encode(),
            value=b'{"item_id": %d, "brand": "brand %d"}' % (item, offset) if lives else None,
        )
        for offset, (item, lives) in enumerate(changes)
    ]
    bounds = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    batches = [
        batch
        for first, last in pairwise(bounds)
        for batch in read(records[first:last], after=last, read_at=100.0 + first)
    ]
    (whole,) = read(records, after=len(records), read_at=100.0)
    together = joined(batches)
    assert together.upserts.equals(whole.upserts)
    assert together.removed.tolist() == whole.removed.tolist()
    assert (together.positions, together.read_at) == (whole.positions, whole.read_at)


def read(records: list[FakeRecord], after: int, read_at: float) -> list[EntityBatch]:
    decoded = decode_entities(records, ITEMS.on_wire(), Position(0))
    return list(entity_batches(decoded, EntityKind.ITEM, "items:0", Position(after), read_at))


def test_joined_batches_have_all_names_and_rejects() -> None:
    records = [
        FakeRecord(0, b'{"item_id": "a"}'),
        FakeRecord(1, b"no json"),
        FakeRecord(2, b'{"item_id": "b"}'),
    ]
    one, other = read(records[:2], 2, 1.0), read([*records[1:2], *records[2:]], 3, 2.0)
    together = joined([*one, *other])
    assert sorted(together.names.values()) == ["a", "b"]
    assert together.rejected == {"not_json": 2}


def test_changes_of_users_and_items_or_of_two_partitions_stay_apart() -> None:
    (batch,) = read([FakeRecord(0, b'{"item_id": 1}')], 1, 1.0)
    assert can_follow(batch, batch, 2)
    assert not can_follow(batch, batch, MAX_ROWS + 1)
    assert not can_follow(batch, replace(batch, kind=EntityKind.USER), 2)
    assert not can_follow(batch, replace(batch, positions={"items:1": Position(1)}), 2)
