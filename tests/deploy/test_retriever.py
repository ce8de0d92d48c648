from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.errors import CheckpointError, DataError
from consumers.hashing import hash_text
from deploy.retrieval import USERS_AT_ONCE, Ask
from deploy.retriever import Answer, Filters, Id, Retriever
from index_refresh.beam_search import search_flat
from tests.streams import COLOUR, FEATURED, TAGS, catalogue, trained_learner
from tests.worlds import CONTEXT, NUM_ITEMS, START_MS, TinyWorld
from trainers.checkpoint import write_checkpoint


@pytest.fixture
def retriever(checkpoint: Path) -> Retriever:
    return Retriever.load(checkpoint)


def scores_of(answer: Answer) -> dict[Id, float]:
    return dict(zip(answer.items, answer.scores, strict=True))


def test_answers_are_in_the_callers_ids_best_first(retriever: Retriever) -> None:
    (answer,) = retriever.retrieve(["user-1"], k=7)
    assert len(answer.items) == len(set(answer.items)) == 7
    assert all(isinstance(item, str) and item.startswith("item-") for item in answer.items)
    assert answer.scores == sorted(answer.scores, reverse=True)


def test_one_user_gets_one_answer(retriever: Retriever) -> None:
    answer = retriever.retrieve("user-1", k=4, history=["item-3"])
    assert [answer] == retriever.retrieve(["user-1"], k=4, history=[["item-3"]])
    assert len(answer.items) == 4


def test_asks_of_every_kind_are_answered_together_as_alone(retriever: Retriever) -> None:
    """A greedy neighbour, filters, histories, contexts, moments of others: none of it shows in an answer."""
    asks = [
        Ask("user-1", 3),
        Ask("user-2", 10 * NUM_ITEMS),
        Ask("nobody", 5, history=["item-1", "item-3"]),
        Ask("user-3", 5, context={"device": "phone", "price_seen": 1}),
        Ask("user-3", 5, context={"price_seen": 0.25, "query": "red tea cup"}),
        Ask("user-4", 5, time_ms=START_MS + 12 * 3_600_000, filters=Filters(exclude_seen=True)),
        Ask("user-4", 5, filters=Filters(only=["item-1", "item-2", "item-5"])),
    ]
    for ask, together in zip(asks, retriever.answer(asks), strict=True):
        (alone,) = retriever.answer([ask])
        assert together.items == alone.items
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-5, atol=1e-6)


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    retriever = Retriever.load(TinyWorld().train(2).checkpoint(tmp_path))
    (answer,) = retriever.retrieve([1], k=5)
    assert all(isinstance(item, int) and 1 <= item <= NUM_ITEMS + 1 for item in answer.items)


@pytest.mark.parametrize("nodes", [(4,), (3, 2), (3, 2, 2)], ids=str)
def test_a_loaded_checkpoint_answers_as_the_live_model_does(nodes: tuple[int, ...], tmp_path: Path) -> None:
    """Flat search over live state, so that the saved and the live index are not compared with themselves."""
    trained = TinyWorld(string_ids=True, context=CONTEXT, nodes=nodes).train(4)
    learner, checkpoint = trained.learner, trained.checkpoint(tmp_path)
    (answer,) = Retriever.load(checkpoint).retrieve(["user-3"], k=NUM_ITEMS)
    view = learner.refresher.view()
    request = Retriever.load(checkpoint)._request([Ask("user-3")])
    live = search_flat(learner.trainer.model, learner.trainer.user_side(request), view, NUM_ITEMS)
    ids = learner.trainer.items.ids.ids_of(live.rows_Bk[0].numpy())
    wanted = {learner.trainer.items.names[i]: s for i, s in zip(ids.tolist(), live.scores_Bk[0], strict=True)}
    got = scores_of(answer)
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose([got[item] for item in wanted], list(wanted.values()), rtol=1e-4, atol=1e-5)


def test_a_string_user_is_the_user_of_its_hash(retriever: Retriever) -> None:
    by_name, by_hash = retriever.retrieve(["user-2", hash_text("user-2")], k=5)
    assert by_name.known
    assert by_hash.known
    assert by_name.items == by_hash.items


def test_unknown_users_are_answered_like_newcomers_and_marked(retriever: Retriever) -> None:
    first, second, known = retriever.retrieve(["nobody", "nobody else", "user-1"], k=5)
    assert not first.known
    assert known.known
    assert (first.items, first.scores) == (second.items, second.scores)
    assert len(first.items) == 5


def test_a_given_history_changes_the_answer_of_an_unknown_user(retriever: Retriever) -> None:
    plain, odd, even = retriever.retrieve(
        ["nobody"] * 3, k=5, history=[None, ["item-1", "item-3"], ["item-2", "item-4"]]
    )
    assert plain.scores != odd.scores
    assert odd.scores != even.scores


def test_a_history_of_unknown_items_changes_nothing(retriever: Retriever) -> None:
    plain, strange = retriever.retrieve(["nobody"] * 2, k=5, history=[None, ["no such item"]])
    assert plain.scores == strange.scores


def test_a_given_history_is_newer_than_the_stored_one(trained: TinyWorld, retriever: Retriever) -> None:
    """Giving a user's own stored items again, newest last, leaves only them: the oldest places fall off."""
    trainer = trained.learner.trainer
    row = trainer.users.find(np.array([hash_text("user-1")]))
    stored = trainer.users.history.read(torch.from_numpy(row))[0]
    newest_first = trainer.items.ids.ids_of(stored[stored > 0].numpy()).tolist()
    assert len(newest_first) == trainer.config.history_length
    plain, again = retriever.retrieve(["user-1"] * 2, k=5, history=[None, newest_first[::-1]])
    np.testing.assert_allclose(plain.scores, again.scores, rtol=1e-6)


def test_a_batch_answers_as_its_users_do_one_by_one(retriever: Retriever) -> None:
    users: list[Id] = [f"user-{n % 40}" for n in range(USERS_AT_ONCE + 3)]
    together = retriever.retrieve(users, k=4)
    assert [answer.user for answer in together] == users
    for place in (0, 1, USERS_AT_ONCE - 1, USERS_AT_ONCE, len(users) - 1):
        (alone,) = retriever.retrieve([users[place]], k=4)
        assert alone.items == together[place].items


def test_asking_for_more_than_there_is_gives_all_live_items_once(retriever: Retriever) -> None:
    (answer,) = retriever.retrieve(["user-1"], k=10 * NUM_ITEMS)
    assert len(answer.items) == len(set(answer.items)) == retriever.num_items


def test_each_user_may_ask_for_another_k(retriever: Retriever) -> None:
    users: list[Id] = ["user-1", "user-2", "nobody"]
    answers = retriever.retrieve(users, k=[2, 10 * NUM_ITEMS, 5])
    assert [len(answer.items) for answer in answers] == [2, retriever.num_items, 5]
    (alone,) = retriever.retrieve(["nobody"], k=5)
    assert alone.items == answers[2].items


# -- filters -----------------------------------------------------------------------------------------------


def everything(retriever: Retriever, user: Id = "user-1") -> list[Id]:
    """All items, best first."""
    (answer,) = retriever.retrieve([user], k=NUM_ITEMS * 10)
    return answer.items


def filtered(
    retriever: Retriever, filters: Filters, k: int = NUM_ITEMS * 10, user: Id = "user-1"
) -> list[Id]:
    (answer,) = retriever.retrieve([user], k=k, filters=filters)
    return answer.items


def test_an_allow_list_bounds_the_answer_and_leaves_its_order(retriever: Retriever) -> None:
    ranked = everything(retriever)
    allowed = [*ranked[::7], "no such item"]
    assert filtered(retriever, Filters(only=allowed)) == ranked[::7]
    worst = ranked[-3:]
    assert filtered(retriever, Filters(only=worst), k=2) == worst[:2]
    assert filtered(retriever, Filters(only=[])) == []


def test_excluded_items_do_not_come_back_and_k_others_do(retriever: Retriever) -> None:
    ranked = everything(retriever)
    assert filtered(retriever, Filters(exclude=ranked[:20])) == ranked[20:]
    few = filtered(retriever, Filters(exclude=ranked[:20]), k=5)
    assert len(few) == 5
    assert set(few) <= set(ranked[20:])
    assert filtered(retriever, Filters(exclude=ranked)) == []
    both = Filters(only=ranked[:4], exclude=ranked[1:3])
    assert filtered(retriever, both) == [ranked[0], ranked[3]]


def test_seen_items_are_left_out_for_each_user_by_its_own_history(
    trained: TinyWorld, retriever: Retriever
) -> None:
    items, users = trained.learner.trainer.items, trained.learner.trainer.users
    asked: list[Id] = ["user-1", "user-2", "nobody"]
    given: list[list[Id] | None] = [None, None, ["item-1"]]
    unseen = retriever.retrieve(asked, k=10 * NUM_ITEMS, history=given, filters=Filters(exclude_seen=True))
    for user, answer in zip(asked[:2], unseen, strict=False):
        row = torch.from_numpy(users.find(np.array([hash_text(str(user))])))
        history = users.history.read(row)[0]
        seen = {items.names[i] for i in items.ids.ids_of(history[history > 0].numpy()).tolist()}
        assert seen
        assert set(everything(retriever)) - set(answer.items) == seen
    assert set(everything(retriever)) - set(unseen[2].items) == {"item-1"}


@pytest.fixture(scope="module")
def catalogued(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """Items 1 to 200 with colours by number: none for multiples of 7, else red, green and blue in turn."""
    learner = trained_learner(6, FEATURED, context=True)
    learner.apply(catalogue(range(1, 201)))
    root = tmp_path_factory.mktemp("catalogued")
    path = write_checkpoint(root, "one", learner.parts(), learner.tables(), learner.manifest({}))
    return Retriever.load(path)


def of_colours(*colours: str) -> set[int]:
    return {n for n in range(1, 201) if n % 7 and ("red", "green", "blue")[n % 3] in colours}


@pytest.mark.parametrize("colours", [("red",), ("red", "blue"), ("no such colour", "green")])
def test_items_must_carry_one_of_the_values_asked_for(
    catalogued: Retriever, colours: tuple[str, ...]
) -> None:
    ranked = everything(catalogued, 1)
    expected = [item for item in ranked if item in of_colours(*colours)]
    assert expected
    where = {COLOUR.name: colours}
    assert filtered(catalogued, Filters(where=where), user=1) == expected
    few = filtered(catalogued, Filters(where=where), k=4, user=1)
    assert len(few) == 4
    assert set(few) <= set(expected)


def test_conditions_add_up(catalogued: Retriever) -> None:
    red = set(filtered(catalogued, Filters(where={COLOUR.name: ["red"]}), user=1))
    tagged = set(filtered(catalogued, Filters(where={TAGS.name: ["tag-1", "tag-2"]}), user=1))
    both = {COLOUR.name: ["red"], TAGS.name: ["tag-1", "tag-2"]}
    assert red
    assert tagged - red
    assert set(filtered(catalogued, Filters(where=both), user=1)) == red & tagged != set()
    assert filtered(catalogued, Filters(where={COLOUR.name: ["no such colour"]}), user=1) == []


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            Filters(where={"size": ["big"]}),
            "where: size is no declared item feature with values; there are: ",
        ),
        (Filters(where={"price": [1.0]}), "where: price is no declared item feature"),
        (Filters(where={"colour": [1.5]}), "where: colour is double, expected "),
        (Filters(only=[1.5]), "only: 1.5 is no id"),
        (Filters(exclude=[True]), "exclude: True is no id"),
    ],
)
def test_bad_filters_are_named(catalogued: Retriever, filters: Filters, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        catalogued.retrieve([1], k=3, filters=filters)


def test_no_users_get_no_answers(retriever: Retriever) -> None:
    assert retriever.retrieve([]) == []


def test_context_and_time_are_read_as_in_events(retriever: Retriever) -> None:
    plain = retriever.retrieve(["user-1"], k=5)
    phone = retriever.retrieve(["user-1"], k=5, context={"device": "phone"})
    full = {"device": "phone", "price_seen": 0.5, "query": "red tea cup"}
    searched = retriever.retrieve(["user-1"], k=5, context=full)
    later = retriever.retrieve(["user-1"], k=5, time_ms=START_MS + 12 * 3_600_000)
    assert len({tuple(answers[0].scores) for answers in (plain, phone, searched, later)}) == 4
    missing = {"device": None, "price_seen": None, "query": None}
    assert retriever.retrieve(["user-1"], k=5, context=missing) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": ["a"], "k": 0}, "k: must be at least 1"),
        ({"users": ["a", "b"], "k": [3, 0]}, "k: must be at least 1, got 0"),
        ({"users": ["a", "b"], "k": [3]}, "k: 1 numbers for 2 users"),
        ({"users": [1.5]}, "users: 1.5 is no id"),
        ({"users": [True]}, "users: True is no id"),
        ({"users": [1 << 64]}, "users: "),
        ({"users": ["a"], "history": []}, "history: 0 entries for 1 users"),
        ({"users": ["a"], "history": [[None]]}, "history: None is no id"),
        (
            {"users": ["a"], "context": {"colour": 1}},
            "context: colour is not declared; declared features: dev",
        ),
        (
            {"users": ["a"], "context": {"price_seen": "cheap"}},
            "context: price_seen is string, expected number",
        ),
    ],
)
def test_bad_arguments_are_named(retriever: Retriever, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        retriever.retrieve(**arguments)


def test_unsigned_ids_wrap_around_as_the_codec_has_it(tmp_path: Path) -> None:
    retriever = Retriever.load(TinyWorld().train(1).checkpoint(tmp_path))
    answers = retriever.retrieve([(1 << 64) - 5, -5], k=3)
    assert answers[0].scores == answers[1].scores


def test_a_retriever_says_which_state_it_is(trained: TinyWorld, retriever: Retriever) -> None:
    assert retriever.watermark_ms == trained.learner.trainer.watermark_ms > START_MS
    assert retriever.index_epoch == trained.learner.refresher.epoch > 0
    (answer,) = retriever.retrieve(["user-1"])
    assert (answer.version, answer.epoch) == (retriever.model_version, retriever.index_epoch)


def test_before_the_index_starts_every_item_is_scored(tmp_path: Path) -> None:
    world = TinyWorld(index_after_steps=1_000).train(2)
    assert world.learner.refresher.epoch == 0
    retriever = Retriever.load(world.checkpoint(tmp_path))
    (answer,) = retriever.retrieve([1], k=NUM_ITEMS)
    assert len(answer.items) == retriever.num_items > 40


def test_before_the_first_event_there_is_nothing_to_answer(tmp_path: Path) -> None:
    retriever = Retriever.load(TinyWorld().checkpoint(tmp_path))
    assert retriever.retrieve([1], k=3)[0].items == []


def test_removed_items_are_in_no_answer(trained: TinyWorld, tmp_path: Path) -> None:
    learner = trained.learner
    gone = "item-1"
    learner.refresher.remove(learner.trainer.remove_items(np.array([hash_text(gone)])))
    retriever = Retriever.load(trained.checkpoint(tmp_path / "after"))
    assert gone not in retriever.retrieve(["user-1"], k=NUM_ITEMS)[0].items


def test_asking_changes_nothing(retriever: Retriever) -> None:
    def ask() -> Sequence[Answer]:
        return retriever.retrieve(["user-1", "nobody"], k=5, history=[["item-1"], ["item-2"]])

    before = list(map(asdict, ask()))
    retriever.retrieve(["someone new"], context={"device": "a device never seen"})
    assert list(map(asdict, ask())) == before


def test_an_altered_checkpoint_does_not_load(checkpoint: Path) -> None:
    file = checkpoint / "items.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="items"):
        Retriever.load(checkpoint)


def test_a_checkpoint_of_another_configuration_does_not_load(trained: TinyWorld, tmp_path: Path) -> None:
    path = trained.checkpoint(tmp_path / "odd", config={"learner": {"trainer": {"no_such": 1}}})
    with pytest.raises(CheckpointError, match="no_such"):
        Retriever.load(path)
