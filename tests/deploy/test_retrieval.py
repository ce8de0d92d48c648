"""Questions to live state: new items at once, removed ones never, and filters that hold for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import DataError
from consumers.hashing import hash_text
from deploy.live import LiveRetrieval
from deploy.retrieval import Answer, Filters, Id
from index_refresh.learner import Learner
from tests.streams import COLOUR, FEATURED, TAGS, catalogue, items_batch, trained_learner
from tests.worlds import NUM_ITEMS, TinyWorld

EVERYTHING = 10**12
NEW = 9_001


@pytest.fixture
def learner() -> Learner:
    return TinyWorld().train(4).learner


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def ask(learner: Learner, filters: Filters | None = None, k: int = EVERYTHING, user: Id = 1) -> Answer:
    (answer,) = LiveRetrieval(learner).retrieve([user], k, filters=filters)
    return answer


# -- arrivals and removals ---------------------------------------------------------------------------------


def test_an_item_that_was_only_read_is_in_the_next_answer_in_its_place(learner: Learner) -> None:
    before = ask(learner)
    learner.fresh.announce(ids(NEW))
    after = ask(learner)
    assert sorted(after.items, key=str) == sorted([*before.items, NEW], key=str)
    assert [item for item in after.items if item != NEW] == before.items
    assert after.scores == sorted(after.scores, reverse=True)


def test_several_fresh_items_stand_together_and_no_answer_is_longer_than_asked(learner: Learner) -> None:
    learner.fresh.announce(ids(NEW, NEW + 1, NEW + 2))
    ranked = ask(learner).items
    place = ranked.index(NEW)
    assert ranked[place : place + 3] == [NEW, NEW + 1, NEW + 2]
    for k in (1, place + 1, place + 2, len(ranked)):
        answer = ask(learner, k=k)
        assert len(answer.items) == len(set(answer.items)) == k
        assert answer.scores == sorted(answer.scores, reverse=True)


def test_a_fresh_item_of_a_stream_of_strings_is_answered_by_its_name() -> None:
    learner = TinyWorld(string_ids=True).train(4).learner
    learner.fresh.announce(ids(hash_text("item-new")), {hash_text("item-new"): "item-new"})
    answer = ask(learner, Filters(only=["item-new"]), user="user-1")
    assert answer.items == ["item-new"]
    assert all(isinstance(item, str) for item in ask(learner, user="user-1").items)


def test_before_the_first_event_fresh_items_are_all_there_is() -> None:
    learner = TinyWorld().learner
    learner.fresh.announce(ids(NEW))
    answer = ask(learner, k=5)
    assert (answer.items, answer.known) == ([NEW], False)


def test_a_removed_item_is_gone_from_the_next_answer(learner: Learner) -> None:
    gone = ask(learner).items[0]
    learner.apply(items_batch([], removed=[int(gone)]))
    assert gone not in ask(learner).items
    assert ask(learner, Filters(only=[gone])).items == []


def test_a_fresh_item_that_is_let_go_is_gone_from_the_next_answer(learner: Learner) -> None:
    learner.fresh.announce(ids(NEW, NEW + 1))
    learner.fresh.removed(ids(NEW))
    assert ask(learner, Filters(only=[NEW, NEW + 1])).items == [NEW + 1]


def test_an_answer_tells_the_step_that_it_is_of(learner: Learner) -> None:
    answer = ask(learner, k=3)
    assert (answer.version, answer.epoch) == (f"step-{learner.trainer.step}", learner.refresher.epoch)


def test_asking_for_more_than_there_is_makes_no_room_for_it(learner: Learner) -> None:
    """A place of 12 bytes for each of 10**12 items could not be allocated."""
    assert len(ask(learner, k=EVERYTHING).items) == len(learner.trainer.items)


# -- filters -----------------------------------------------------------------------------------------------


def test_fresh_items_keep_to_allow_lists_and_exclusions(learner: Learner) -> None:
    learner.fresh.announce(ids(NEW, NEW + 1))
    ranked = ask(learner).items
    old = [item for item in ranked if item not in (NEW, NEW + 1)]
    assert ask(learner, Filters(exclude=[NEW])).items == [item for item in ranked if item != NEW]
    assert ask(learner, Filters(only=old)).items == old
    assert ask(learner, Filters(only=[NEW + 1], exclude=[NEW])).items == [NEW + 1]
    assert ask(learner, Filters(only=[NEW], exclude=[NEW])).items == []


def test_fresh_items_were_seen_by_nobody(learner: Learner) -> None:
    learner.fresh.announce(ids(NEW))
    seen = set(ask(learner).items) - set(ask(learner, Filters(exclude_seen=True)).items)
    assert seen
    assert NEW not in seen


@pytest.fixture(scope="module")
def catalogued() -> Learner:
    """Two hundred items, all with features in the catalogue."""
    learner = trained_learner(6, FEATURED, context=True)
    learner.apply(catalogue(range(1, 201)))
    return learner


def test_fresh_items_carry_no_value_that_could_be_asked_for(catalogued: Learner) -> None:
    catalogued.fresh.announce(ids(NEW))
    answer = ask(catalogued, Filters(where={COLOUR.name: ["red", "green", "blue"]}))
    assert answer.items
    assert NEW not in answer.items
    assert NEW in ask(catalogued).items


TAGS_OF = {
    number: set(tags)
    for number, tags in zip(
        range(1, 201), catalogue(range(1, 201)).upserts.column(TAGS.name).to_pylist(), strict=True
    )
}


@given(
    only=st.none() | st.lists(st.integers(1, 210), max_size=60),
    exclude=st.lists(st.integers(1, 210), max_size=60),
    tags=st.none() | st.lists(st.integers(0, 10), min_size=1, max_size=3),
    ks=st.lists(st.integers(1, 40), min_size=3, max_size=3),
)
@settings(max_examples=40)
def test_a_filtered_answer_is_the_whole_answer_without_what_the_filters_forbid(
    catalogued: Learner,
    only: list[int] | None,
    exclude: list[int],
    tags: list[int] | None,
    ks: list[int],
) -> None:
    """The allowed items of small answers may be scored in part only, so those are compared as subsets."""
    words = None if tags is None else [f"tag-{tag}" for tag in tags]
    filters = Filters(only=only, exclude=exclude, where={TAGS.name: words} if words else None)
    hashes = {hash_text(word) for word in words or ()}
    allowed = {
        item
        for item in ask(catalogued).items
        if (only is None or item in only)
        and item not in exclude
        and (words is None or hashes & TAGS_OF.get(int(item), set()))
    }
    users: list[Id] = [1, 2, "nobody"]
    whole = LiveRetrieval(catalogued).retrieve(users, EVERYTHING, filters=filters)
    for answer in whole:
        assert set(answer.items) == allowed
        assert len(answer.items) == len(allowed)
        assert answer.scores == sorted(answer.scores, reverse=True)
    for answer, k in zip(LiveRetrieval(catalogued).retrieve(users, ks, filters=filters), ks, strict=True):
        assert len(answer.items) == min(k, len(allowed))
        assert set(answer.items) <= allowed


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "filters", "message"),
    [
        (["\ud800"], Filters(), "users: '\\\\ud800' is no text"),
        ([1], Filters(only=["a", "\udfff"]), "only: '\\\\udfff' is no text"),
        ([1], Filters(exclude=[None]), "exclude: None is no id"),  # type: ignore[list-item]
        ([1], Filters(where={"colour": [2**70]}), "where: colour: "),
        ([1], Filters(where={"colour": ["\ud800"]}), "where: colour: "),
        ([1], Filters(where={"colour": [1, "a"]}), "where: colour: "),
        ([1], Filters(where={"tags": [object()]}), "where: tags: "),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_argument(
    catalogued: Learner, users: Sequence[Id], filters: Filters, message: str
) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        LiveRetrieval(catalogued).retrieve(users, 3, filters=filters)


def test_unusual_values_of_where_find_nothing_and_break_nothing(catalogued: Learner) -> None:
    values: list[Any] = ["", "no such tag", "tag-1 "]
    assert ask(catalogued, Filters(where={TAGS.name: values})).items == []
    assert len(ask(catalogued).items) >= NUM_ITEMS
