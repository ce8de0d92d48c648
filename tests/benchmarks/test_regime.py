"""The benchmark of the regime change: its stream, its contenders, and what it calls a recovery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import regime
from benchmarks.harness import Report, parser
from benchmarks.regime import Race, ScenarioConfig, Stream
from benchmarks.regime_contenders import (
    NIGHT_MS,
    NO_ANSWER,
    FrozenIndex,
    Living,
    Nightly,
    Requests,
)
from benchmarks.regime_levels import BACK, WINDOWS_PER_DAY, Levels, Line
from benchmarks.regime_picture import finding
from benchmarks.world_batches import removal
from consumers import columns as c
from consumers.batch import EntityBatch, EntityKind, EventBatch
from consumers.errors import DataError
from index_refresh.evaluation import EvaluationConfig
from index_refresh.leaf_lists import NOWHERE
from index_refresh.learner import LearnerConfig
from tests.streams import CODEBOOK, TRAINER

BATCH = 32
FIRST, END = -2 * WINDOWS_PER_DAY, 3 * WINDOWS_PER_DAY


class TinyScenario(ScenarioConfig):
    """A world of seconds."""

    def learner(self) -> LearnerConfig:
        config = super().learner()
        codebook = CODEBOOK.model_copy(update={"nodes": (8,)})
        model = TRAINER.model.model_copy(update={"codebook": codebook})
        trainer = TRAINER.model_copy(update={"batch_size": BATCH, "model": model})
        evaluation = EvaluationConfig(k=10, budget=0.2, scores_per_event=1e-9)
        return config.model_copy(update={"trainer": trainer, "evaluation": evaluation})


TINY = TinyScenario(num_items=300, nights_before=1.25, nights_after=1.25, impressions_per_item=50.0)


@pytest.fixture(scope="module")
def race() -> Race:
    race = Race(TINY)
    race.run(Report(parser("regime", "").parse_args(["--json"])))
    return race


def line_of(recalls: list[float], first: int = FIRST) -> Line:
    line = Line()
    for window, recall in enumerate(recalls, first):
        line.add(window, round(1_000 * recall), 1_000, 0.1)
    return line


# -- levels ------------------------------------------------------------------------------------------------


def test_a_line_that_never_fell_is_back_at_once() -> None:
    levels = Levels.of(line_of([0.4] * (END - FIRST)), END)
    assert levels.back_at == 0
    assert levels.recovery_ratio == pytest.approx(1.0)


def test_a_line_is_back_in_the_window_from_which_it_stays() -> None:
    after = [0.1, 0.2, 0.39, 0.1] + [0.39] * (END - 4)
    levels = Levels.of(line_of([0.4] * -FIRST + after), END)
    assert levels.back_at == 4
    assert levels.lowest == pytest.approx(0.1)
    assert levels.last_day == pytest.approx(0.39)


def test_a_good_morning_is_no_recovery() -> None:
    """A nightly rebuild that is good for one window of four has not recovered."""
    after = [0.4, 0.3, 0.3, 0.3] * (END // 4)
    levels = Levels.of(line_of([0.4] * -FIRST + after), END)
    assert levels.back_at is None
    assert levels.recovery_ratio == pytest.approx(0.325 / 0.4)


@given(st.lists(st.floats(0.0, 1.0), min_size=END - FIRST, max_size=END - FIRST))
def test_who_is_back_had_a_day_at_the_former_level(recalls: list[float]) -> None:
    recalls[:-FIRST] = [0.2 + 0.8 * recall for recall in recalls[:-FIRST]]
    line = line_of(recalls)
    levels = Levels.of(line, END)
    assert levels.lowest <= levels.first_day <= levels.best_day
    assert levels.last_day <= levels.best_day
    if levels.back_at is not None:
        assert line.recall(levels.back_at, levels.back_at + WINDOWS_PER_DAY) >= BACK * levels.former - 1e-6
        assert levels.recovery_ratio >= BACK - 1e-6


def test_windows_without_requests_have_no_recall() -> None:
    assert np.isnan(Line().recall(0, 4))


# -- the stream --------------------------------------------------------------------------------------------


def test_no_event_names_an_item_that_is_unborn_or_gone() -> None:
    alive: set[int] = set()
    gone: set[int] = set()
    num_events = 0
    for change in Stream(TINY, BATCH):
        if isinstance(change.batch, EventBatch):
            named = set(change.batch.table.column(c.ITEM_ID).to_pylist())
            assert len(change.batch) == BATCH
            assert named <= alive
            num_events += BATCH
        elif change.batch.kind is EntityKind.ITEM:
            alive |= set(change.batch.upserts.column(c.ITEM_ID).to_pylist())
            assert not alive & gone
            gone |= set(change.batch.removed.tolist())
            alive -= gone
    assert gone
    assert num_events > 20 * BATCH


def test_equal_seeds_give_equal_streams_and_windows_never_go_back() -> None:
    one, other = (list(Stream(TINY, BATCH)) for _ in range(2))
    windows = [change.window for change in one]
    assert windows == sorted(windows)
    assert set(windows) == set(range(TINY.first_window, TINY.last_window))
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine.batch, EventBatch):
            assert mine.batch.table.equals(theirs.batch.table)  # type: ignore[union-attr]


# -- contenders --------------------------------------------------------------------------------------------


def test_all_contenders_answer_the_same_requests(race: Race) -> None:
    lines = race.best_lines()
    expected = lines[Living.INDEX].answered
    for name, line in lines.items():
        assert {w: line.answered[w] for w in range(END) if w in expected} == {
            w: expected[w] for w in range(END) if w in expected
        }, name


def test_every_search_but_the_exact_ones_scores_about_the_budget(race: Race) -> None:
    lines, end = race.best_lines(), TINY.last_window
    for name in (Living.INDEX, FrozenIndex.NAME, Nightly.NAME):
        assert 0.1 < lines[name].share_scored(0, end) < 0.45, name
    assert lines[Living.FLAT].share_scored(0, end) == pytest.approx(1.0)


def test_the_frozen_index_keeps_its_leaves_and_loses_only_what_is_removed(race: Race) -> None:
    frozen = FrozenIndex(race.living.learner)
    items, before = frozen.trainer.items, frozen.refresher.leaves.codes.copy()
    placed = np.flatnonzero(before != NOWHERE)
    gone = items.ids.ids_of(placed[:3])
    for change in newest_changes(race):
        frozen.learn(change)
    frozen.apply(removal(gone))
    after = frozen.refresher.leaves.codes[: len(before)]
    assert (after[placed[:3]] == NOWHERE).all()
    assert np.array_equal(after[placed[3:]], before[placed[3:]])
    assert not np.isin(items.ids.ids_of(frozen.refresher.leaves.in_leaf_order()), gone).any()


def test_the_model_of_the_frozen_index_goes_on(race: Race) -> None:
    frozen = FrozenIndex(race.living.learner)
    model = frozen.trainer.model
    nodes, weights = model.codebook.nodes(0).detach().clone(), model.item_tower.linear.weight.detach().clone()
    for change in newest_changes(race):
        frozen.learn(change)
    assert torch.equal(model.codebook.nodes(0), nodes)
    assert not torch.equal(model.item_tower.linear.weight, weights)


def test_nothing_can_be_frozen_before_there_is_an_index() -> None:
    with pytest.raises(DataError, match="no index to freeze"):
        FrozenIndex(Living(TINY.learner()).learner)


def test_the_nightly_model_answers_from_midnight_on_and_never_with_removed_items() -> None:
    nightly = Nightly(TINY.learner(), num_lists=4)
    first_answer = None
    requests = None
    for change in Stream(TINY, BATCH):
        if isinstance(change.batch, EntityBatch):
            nightly.apply(change.batch)
            continue
        requests = Requests(change.batch.table, 10, 60)
        if nightly.answer(requests) and first_answer is None:
            first_answer = change.batch.table.column(c.EVENT_TIME)[0].as_py()
        if first_answer is not None:
            break
        nightly.learn(change.batch)
    assert first_answer is not None
    assert requests is not None
    assert first_answer % NIGHT_MS < NIGHT_MS / 10
    answer = nightly.answer(requests)[Nightly.NAME]
    gone = answer.ids_Bk[0, :5]
    nightly.apply(removal(gone))
    for name in (Nightly.NAME, Nightly.FLAT):
        ids = nightly.answer(requests)[name].ids_Bk
        assert not np.isin(ids[ids != NO_ANSWER], gone).any(), name


def test_the_two_tower_model_scores_by_inner_product_alone() -> None:
    nightly = Nightly(TINY.learner(), num_lists=4)
    for number, change in enumerate(Stream(TINY, BATCH)):
        if isinstance(change.batch, EntityBatch):
            nightly.apply(change.batch)
        else:
            nightly.learn(change.batch)
        if number > 20:
            break
    trainer = nightly.trainer
    side = trainer.item_side(torch.from_numpy(trainer.items.live_rows()))
    batch = next(change.batch for change in Stream(TINY, BATCH) if isinstance(change.batch, EventBatch))
    users = trainer.user_side(trainer.request(batch.table))
    expected = users.item.queries_BQV[:, 0] @ side.vectors_CV.T
    assert not trainer.model.codebook.is_started
    assert torch.allclose(users.item.score(side.vectors_CV), expected, atol=1e-6)


# -- the whole ---------------------------------------------------------------------------------------------


def test_the_run_ends_with_its_figures_and_a_picture(
    race: Race, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(parser("regime", "").parse_args([]))
    regime.show(report, race)
    text = capsys.readouterr().out
    for key in ("living", "frozen", "nightly", "flat", "popularity"):
        assert f"{key}_recovery_ratio: " in text
        assert f"{key}_recovery_events: " in text
    picture = tmp_path / "deep" / "regime.png"
    regime.draw(
        picture, race.best_lines(), race.levels(), (TINY.first_window, TINY.last_window), TINY.in_words()
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_headline_says_who_is_back() -> None:
    back = Levels(0.4, 0.1, 0.3, 0.4, 0.4, back_at=6)
    gone = Levels(0.4, 0.1, 0.2, 0.2, 0.2, back_at=None)
    text = finding({Living.INDEX: back, Nightly.NAME: gone, FrozenIndex.NAME: gone})
    assert text == "Back after: living index 36 h, nightly rebuild never, frozen index never"


def newest_changes(race: Race) -> list[EventBatch]:
    """Event batches that name only items which are alive at the end of the race."""
    find = race.living.learner.trainer.items.find
    batches = [change.batch for change in Stream(TINY, BATCH) if isinstance(change.batch, EventBatch)]
    return [batch for batch in batches if (find(batch.table.column(c.ITEM_ID).to_numpy()) > 0).all()][-3:]
