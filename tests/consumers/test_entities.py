from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers import entities
from consumers.batch import EntityKind, Position
from consumers.codecs import decode_entities, encode_arrow
from consumers.entities import entity_batches
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
