from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import FEATURED, TwoGroups, catalogue, changed, items_batch, learner_config, trained_learner

from consumers.hashing import hash_text
from index_refresh.health import balance
from index_refresh.invariant import breached, some
from index_refresh.learner import Learner, LearnerConfig
from index_refresh.search_check import ANSWERS, Asked, ask
from index_refresh.verify import CONTENT, FORM, PARTS, problems
from tests.worlds import TinyWorld
from trainers.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

LEVELS = {"one level": (8,), "two levels": (4, 3)}
STRINGS = "strings"


def saved(learner: Learner, root: Path, name: str = "one") -> Checkpoint:
    path = write_checkpoint(root, name, learner.parts(), learner.tables(), learner.manifest({}))
    return read_checkpoint(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Real checkpoints, some of whose items were removed; rows 3 and 5 are free."""
    root, found = tmp_path_factory.mktemp("checkpoints"), {}
    for kind, nodes in LEVELS.items():
        learner = trained_learner(12, learner_config(nodes))
        learner.apply(items_batch([], removed=learner.trainer.items.ids.ids_of(np.array([3, 5])).tolist()))
        found[kind] = saved(learner, root, kind.replace(" ", "-"))
    found[STRINGS] = saved(TinyWorld(string_ids=True).train(4).learner, root, STRINGS)
    return found


def copy_of(checkpoint: Checkpoint) -> Checkpoint:
    parts = {part: {k: v.clone() for k, v in tensors.items()} for part, tensors in checkpoint.parts.items()}
    return replace(checkpoint, parts=parts, tables=dict(checkpoint.tables))


def cut(part: str, name: str, count: int = 1) -> Callable[[Checkpoint], None]:
    def damage(checkpoint: Checkpoint) -> None:
        checkpoint.parts[part][name] = checkpoint.parts[part][name][:-count].clone()

    return damage


def put(part: str, name: str, place: Any, value: Any) -> Callable[[Checkpoint], None]:
    def damage(checkpoint: Checkpoint) -> None:
        checkpoint.parts[part][name][place] = value

    return damage


def leave_out(part: str, name: str) -> Callable[[Checkpoint], Any]:
    return lambda checkpoint: checkpoint.parts[part].pop(name)


def of_another_type(part: str, name: str) -> Callable[[Checkpoint], None]:
    def damage(checkpoint: Checkpoint) -> None:
        checkpoint.parts[part][name] = checkpoint.parts[part][name].double()

    return damage


def one_more_leaf(checkpoint: Checkpoint) -> None:
    index = checkpoint.parts["index"]
    index["sizes"] = torch.cat([index["sizes"], torch.zeros(1, dtype=torch.int64)])


def other_levels(checkpoint: Checkpoint) -> None:
    index = checkpoint.parts["index"]
    index["nodes"] = torch.tensor([2, int(index["nodes"].prod()) // 2])


def narrower_vectors(checkpoint: Checkpoint) -> None:
    items = checkpoint.parts["items"]
    items["rows.vector"] = items["rows.vector"][:, 1:].clone()


def agree(checkpoint: Checkpoint) -> None:
    """A manifest whose figures are those of the damaged index."""
    index, live = checkpoint.parts["index"], checkpoint.parts["items"]["ids.live"]
    figures = balance(index["sizes"].numpy(), tuple(index["nodes"].tolist()), int(live.sum()))
    set_metrics(checkpoint, **figures)


def take_from_the_first(checkpoint: Checkpoint) -> None:
    """More than it has, so that the sum stays."""
    sizes = checkpoint.parts["index"]["sizes"]
    sizes[1] += sizes[0] + 2
    sizes[0] = -2
    agree(checkpoint)


def one_too_many(checkpoint: Checkpoint) -> None:
    sizes = checkpoint.parts["index"]["sizes"]
    sizes[sizes.argmax()] += 1


def list_row(row: int) -> Callable[[Checkpoint], None]:
    """One row more in the last leaf that is used."""

    def damage(checkpoint: Checkpoint) -> None:
        index = checkpoint.parts["index"]
        index["rows"] = torch.cat([index["rows"], torch.tensor([row])])
        index["sizes"][int(torch.nonzero(index["sizes"])[-1])] += 1
        agree(checkpoint)

    return damage


def list_the_first_twice(checkpoint: Checkpoint) -> None:
    list_row(int(checkpoint.parts["index"]["rows"][0]))(checkpoint)


def lose_the_last(checkpoint: Checkpoint) -> None:
    index = checkpoint.parts["index"]
    index["rows"] = index["rows"][:-1].clone()
    index["sizes"][index["sizes"].argmax()] -= 1
    agree(checkpoint)


def set_metrics(checkpoint: Checkpoint, **metrics: float) -> None:
    set_manifest(checkpoint, metrics={**checkpoint.manifest.metrics, **metrics})


def set_manifest(checkpoint: Checkpoint, **values: Any) -> None:
    # Checkpoints are frozen, so that nobody does by accident what this test does on purpose.
    object.__setattr__(checkpoint, "manifest", replace(checkpoint.manifest, **values))


def give_an_id_twice(checkpoint: Checkpoint) -> None:
    ids = checkpoint.parts["items"]["ids.ids"]
    ids[1] = ids[2]


def forget_a_metric(checkpoint: Checkpoint) -> None:
    metrics = {k: v for k, v in checkpoint.manifest.metrics.items() if k != "index_nodes_used"}
    set_manifest(checkpoint, metrics=metrics)


def ask_for_longer_histories(checkpoint: Checkpoint) -> None:
    config = LearnerConfig.model_validate(checkpoint.manifest.config["learner"])
    longer = changed(config, trainer__history_length=config.trainer.history_length + 1)
    set_manifest(checkpoint, config={"learner": longer.model_dump(mode="json")})


def nan(like: str, part: str, place: Any) -> Callable[[Checkpoint], None]:
    return put(part, like, place, math.nan)


DAMAGES: dict[str, tuple[Callable[[Checkpoint], Any], str, str]] = {
    "no rows": (leave_out("index", "rows"), "every part is there in its form", "1 part: index/rows"),
    "no index": (lambda c: c.parts.pop("index"), "every part is there in its form", "6 parts: index/rows"),
    "no names": (lambda c: c.tables.pop("names"), "every part is there in its form", "1 part: names"),
    "sizes as floats": (of_another_type("index", "sizes"), "every part is there in its form", "index/sizes"),
    "scalars cut off": (cut("index", "scalars"), "every part is there in its form", "index/scalars"),
    "other levels": (other_levels, "the levels are those of the codebook", "the codebook"),
    "one more leaf": (one_more_leaf, "there are as many leaves as paths of nodes", "sizes for"),
    "masses cut off": (cut("index", "mass"), "there are as many leaves as paths of nodes", "masses for"),
    "usage cut off": (
        cut("model", "codebook.usage_P"),
        "the codebook keeps a figure for every node",
        "usage_P has",
    ),
    "no density": (
        leave_out("model", "codebook.log_density_0"),
        "the codebook keeps a figure for every node",
        "log_density_0 has 0 of",
    ),
    "biases cut off": (cut("items", "rows.bias", 3), "every item row has all columns", "bias has"),
    "narrow vectors": (narrower_vectors, "item vectors are as wide as the networks", "values a vector"),
    "less than nothing": (take_from_the_first, "no leaf has a negative size", "1 leaf: 0"),
    "one too many": (one_too_many, "leaf sizes add up to the rows listed", "rows are listed"),
    "row far out": (list_row(10**6), "every listed row is in the item table", "1 row: 1000000"),
    "negative row": (list_row(-1), "every listed row is in the item table", "1 row: -1"),
    "row 0": (list_row(0), "every listed row is in the item table", "1 row: 0"),
    "twice": (list_the_first_twice, "every row is listed once", "1 row: "),
    "a removed item": (list_row(3), "every listed row is of a live item", "1 row: 3"),
    "a lost item": (lose_the_last, "every live item is listed", "1 row: "),
    "negative mass": (
        put("index", "mass", 1, -0.1),
        "popularity of leaves is finite and not negative",
        "1 leaf: 1",
    ),
    "mass is NaN": (
        nan("mass", "index", slice(0, 2)),
        "popularity of leaves is finite and not negative",
        "2 leaves: 0, 1",
    ),
    "row 0 was born": (put("items", "rows.born", 0, 1), "row 0 belongs to no item", "row 0 is taken"),
    "two rows of an id": (give_an_id_twice, "every id has one row", "1 id: "),
    "born but not live": (
        put("items", "rows.born", 3, 1),
        "ids and columns agree on which rows are live",
        "1 row: 3",
    ),
    "live but not born": (
        put("items", "rows.born", [2, 7], -1),
        "ids and columns agree on which rows are live",
        "2 rows: 2, 7",
    ),
    "vector is NaN": (nan("rows.vector", "items", (7, 1)), "vectors of live items are finite", "1 row: 7"),
    "bias is infinite": (
        put("items", "rows.bias", 7, math.inf),
        "vectors of live items are finite",
        "1 row: 7",
    ),
    "node is NaN": (nan("codebook.codes.0", "model", (2, 0)), "node vectors are finite", "1 node: 1:2"),
    "node is zero": (
        put("model", "codebook.codes.0", 2, 0.0),
        "no node of the first level is zero",
        "1 node: 2",
    ),
    "usage too small": (
        lambda c: c.parts["model"]["codebook.usage_P"].mul_(0.9),
        "usage of leaves is a share each, 1 in all",
        "shares add up to 0.9",
    ),
    "negative usage": (
        put("model", "codebook.usage_P", 1, -0.1),
        "usage of leaves is a share each, 1 in all",
        "1 leaf: 1",
    ),
    "density is infinite": (
        put("model", "codebook.log_density_0", 3, -math.inf),
        "popularity of nodes is finite",
        "1 node: 1:3",
    ),
    "a weight is NaN": (
        nan("ensemble_weight", "model", 0),
        "weights of the networks are finite",
        "1 weight: ensemble_weight",
    ),
    "another epoch": (
        lambda c: set_manifest(c, index_epoch=c.manifest.index_epoch + 1),
        "the manifest is of this state",
        "index_epoch is",
    ),
    "another step": (lambda c: set_manifest(c, step=1), "the manifest is of this state", "step is 1 in"),
    "another number of items": (
        lambda c: set_metrics(c, index_items=1.0),
        "the manifest's index figures are those of the index",
        "index_items is 1.0 in the manifest",
    ),
    "a metric forgotten": (
        forget_a_metric,
        "the manifest's index figures are those of the index",
        "index_nodes_used is None in the manifest",
    ),
    "another config": (ask_for_longer_histories, "the state can be loaded", "history.items"),
    "a user is NaN": (
        nan("rows.weight", "users", slice(1, None)),
        "a search over everything finds the best of everything",
        "users: user ",
    ),
}


@pytest.mark.parametrize("kind", [*LEVELS, STRINGS])
def test_an_intact_index_has_no_problem(kind: str, intact: dict[str, Checkpoint]) -> None:
    assert problems(intact[kind]) == []


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, kind: str, intact: dict[str, Checkpoint]) -> None:
    break_it, says, found = DAMAGES[damage]
    checkpoint = copy_of(intact[kind])
    break_it(checkpoint)
    broken = problems(checkpoint)
    assert [problem.invariant for problem in broken] == [says]
    assert found in broken[0].found
    assert broken[0].meaning in str(broken[0])


def renamed(change: Callable[[list[int], list[str]], None]) -> Callable[[Checkpoint], None]:
    def damage(checkpoint: Checkpoint) -> None:
        ids, texts = (column.to_pylist() for column in checkpoint.tables["names"].columns)
        change(ids, texts)
        checkpoint.tables["names"] = pa.table({"item_id": pa.array(ids, pa.int64()), "name": texts})

    return damage


def name_nobody(ids: list[int], texts: list[str]) -> None:
    ids.append(hash_text("nobody"))
    texts.append("nobody")


def swap_names(ids: list[int], texts: list[str]) -> None:
    texts[0], texts[1] = texts[1], texts[0]


NAME_DAMAGES: dict[str, tuple[Callable[[Checkpoint], None], str, str]] = {
    "a name of nobody": (renamed(name_nobody), "only live items have names", f"1 id: {hash_text('nobody')}"),
    "swapped names": (renamed(swap_names), "a name hashes to its id", "2 ids: "),
}


@pytest.mark.parametrize("damage", NAME_DAMAGES)
def test_damage_to_names_is_named(damage: str, intact: dict[str, Checkpoint]) -> None:
    break_it, says, found = NAME_DAMAGES[damage]
    checkpoint = copy_of(intact[STRINGS])
    break_it(checkpoint)
    assert [(p.invariant, p.found[: len(found)]) for p in problems(checkpoint)] == [(says, found)]


HEAD_DAMAGES: dict[str, tuple[Callable[[Checkpoint], None], str, str]] = {
    "as floats": (
        of_another_type("trainer", "heads.rows"),
        "heads are lists of rows",
        "heads are torch.float64",
    ),
    "far out": (
        put("trainer", "heads.rows", (2, 1), 10**6),
        "heads name rows of the item table",
        "1 row: 1000000",
    ),
    "negative": (put("trainer", "heads.rows", (2, 0), -4), "heads name rows of the item table", "1 row: -4"),
    "twice": (put("trainer", "heads.rows", 1, 7), "a head names an item once", "1 value: 1"),
}


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    learner = trained_learner(12, FEATURED, context=True)
    learner.apply(catalogue(range(1, 101)))
    for batch in TwoGroups(seed=1, context=True).batches(4):
        learner.learn(batch)
    return saved(learner, tmp_path_factory.mktemp("with-heads"))


def test_an_index_whose_values_have_heads_has_no_problem(with_heads: Checkpoint) -> None:
    assert (with_heads.parts["trainer"]["heads.rows"] > 0).any()
    assert problems(with_heads) == []


@pytest.mark.parametrize("damage", HEAD_DAMAGES)
def test_damage_to_heads_is_named(damage: str, with_heads: Checkpoint) -> None:
    break_it, says, found = HEAD_DAMAGES[damage]
    checkpoint = copy_of(with_heads)
    break_it(checkpoint)
    assert [(p.invariant, p.found[: len(found)]) for p in problems(checkpoint)] == [(says, found)]


# -- before the index, and while it is filled ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_state_from_before_the_index_has_no_problem(steps: int, tmp_path: Path) -> None:
    learner = trained_learner(steps)
    assert learner.trainer.model.codebook.is_started == (steps >= 3)
    assert problems(saved(learner, tmp_path)) == []


def test_items_that_wait_while_the_index_is_filled_are_no_problem(tmp_path: Path) -> None:
    """They are no longer excused once the filling is over."""
    learner = trained_learner(3, learner_config(refresh__fill_rows=20, refresh__sweep_rows=20))
    assert len(learner.refresher.leaves) < len(learner.trainer.items)
    checkpoint = saved(learner, tmp_path)
    assert problems(checkpoint) == []
    checkpoint.parts["index"]["sweep"][0] = 0
    assert [problem.invariant for problem in problems(checkpoint)] == ["every live item is listed"]


def test_an_index_without_items_has_no_problem(tmp_path: Path) -> None:
    learner = trained_learner(6)
    learner.apply(items_batch([], removed=range(1, 300)))
    assert len(learner.trainer.items) == 0
    assert problems(saved(learner, tmp_path)) == []


# -- what searches answer -----------------------------------------------------------------------------------


def answered(**changes: Any) -> Asked:
    good = Asked(
        user="user 7",
        rows_k=np.array([4, 2, 9]),
        scores_k=np.array([3.0, 2.0, 1.0], dtype=np.float32),
        direct_k=np.array([3.0, 2.0, 1.0], dtype=np.float32),
        are_live_k=np.array([True, True, True]),
        through_everything_k=np.array([3.5, 3.0], dtype=np.float32),
        best_k=np.array([3.5, 3.0], dtype=np.float32),
    )
    return replace(good, **changes)


ANSWER_DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "searches answer live items only": (
        {"are_live_k": np.array([True, False, True])},
        "1 answer: row 2 for user 7",
    ),
    "searches answer an item once": ({"rows_k": np.array([4, 2, 4])}, "1 answer: row 4 for user 7"),
    "scores of a search are those of the networks": (
        {"direct_k": np.array([3.0, np.nan, 1.1])},
        "2 answers: row 2 for user 7, row 9 for user 7",
    ),
    "a search over everything finds the best of everything": (
        {"through_everything_k": np.array([3.5, 2.9])},
        "1 user: user 7",
    ),
}


@pytest.mark.parametrize("says", ANSWER_DAMAGES)
def test_a_wrong_answer_is_named(says: str) -> None:
    changes, found = ANSWER_DAMAGES[says]
    assert breached(ANSWERS, [answered(), answered(user="user 3")]) == []
    (problem,) = breached(ANSWERS, [answered(user="user 3"), answered(**changes)])
    assert (problem.invariant, problem.found) == (says, found)


def test_a_search_that_stops_too_early_is_named() -> None:
    (problem,) = breached(ANSWERS, [answered(through_everything_k=np.array([3.5]))])
    assert problem.invariant == "a search over everything finds the best of everything"


@pytest.mark.parametrize("kind", [*LEVELS, STRINGS])
def test_users_of_the_stream_and_an_unknown_one_are_asked_for(
    kind: str, intact: dict[str, Checkpoint]
) -> None:
    learner = Learner.restore(intact[kind])
    asked = ask(learner)
    k = learner.evaluator.config.k
    assert len({answer.user for answer in asked}) == len(asked) == 8
    assert asked[-1].user == "an unknown user"
    assert {len(answer.rows_k) for answer in asked} == {len(answer.best_k) for answer in asked} == {k}
    assert all(answer.best_k[0] >= answer.scores_k[0] - 1e-4 for answer in asked)


# -- the lists and the words --------------------------------------------------------------------------------


def test_every_invariant_is_broken_by_some_damage() -> None:
    """So that none of the list is one that cannot fail."""
    listed = {invariant.says for stage in (PARTS, FORM, CONTENT, ANSWERS) for invariant in stage}
    damages = (*DAMAGES.values(), *NAME_DAMAGES.values(), *HEAD_DAMAGES.values())
    tested = {says for _, says, _ in damages} | set(ANSWER_DAMAGES)
    assert listed - tested == set()


@given(concerned=st.lists(st.integers(0, 10**9)))
def test_a_finding_says_how_many_and_names_the_first(concerned: list[int]) -> None:
    text = some("leaf", concerned)
    assert bool(text) == bool(concerned)
    if concerned:
        count, _, named = text.partition(" ")
        assert int(count.replace(",", "")) == len(concerned)
        assert named.startswith("leaf: " if len(concerned) == 1 else "leaves: ")
        assert named.split(": ")[1].split(", ")[: len(concerned)][:5] == list(map(str, concerned[:5]))
        assert named.endswith("...") == (len(concerned) > 5)
