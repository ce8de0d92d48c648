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
from deploy.retriever import USERS_AT_ONCE, Answer, Id, Retriever
from index_refresh.beam_search import search_flat
from tests.worlds import NUM_ITEMS, START_MS, TinyWorld


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


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    retriever = Retriever.load(TinyWorld().train(2).checkpoint(tmp_path))
    (answer,) = retriever.retrieve([1], k=5)
    assert all(isinstance(item, int) and 1 <= item <= NUM_ITEMS + 1 for item in answer.items)


def test_a_loaded_checkpoint_answers_as_the_live_model_does(trained: TinyWorld, checkpoint: Path) -> None:
    """Flat search over live state, so that the saved and the live index are not compared with themselves."""
    learner = trained.learner
    (answer,) = Retriever.load(checkpoint).retrieve(["user-3"], k=NUM_ITEMS)
    view = learner.refresher.view()
    request = Retriever.load(checkpoint)._request(
        np.array([hash_text("user-3")], dtype=np.int64), learner.trainer.watermark_ms, {}
    )
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
