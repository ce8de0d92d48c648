from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from streams import LEARNER, LEVELS, TwoGroups, bits, changed, events, items_batch, trained_learner

from consumers.batch import EventBatch
from index_refresh.beam_search import search, search_flat
from index_refresh.evaluation import ClickWindow, EvaluationConfig, Evaluator
from index_refresh.learner import Learner
from index_refresh.tree import sizes_of_level

K = LEARNER.evaluation.k
EVERY_EVENT: dict[str, Any] = {
    "evaluation__scores_per_event": 1e9,
    "evaluation__max_queries": 64,
    "evaluation__budget": 1.0,
}


def a_learner(steps: int = 12, **updates: Any) -> Learner:
    return trained_learner(steps, changed(LEARNER, **{**EVERY_EVENT, **updates}))


def fresh_evaluator(learner: Learner) -> Evaluator:
    return Evaluator(learner.config.evaluation, learner.trainer, learner.refresher)


def answered(learner: Learner, batch: EventBatch) -> dict[str, float]:
    evaluator = fresh_evaluator(learner)
    evaluator.answer(batch)
    return evaluator.metrics()


def after(learner: Learner, users: list[int], items: list[int], **more: Any) -> EventBatch:
    """Events an hour after everything that was learnt, each at the same moment."""
    at = learner.trainer.watermark_ms + 3_600_000
    return events(users, items, times=np.full(len(users), at), **more)


# -- recall ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
def test_recall_is_the_share_of_events_whose_item_was_among_the_answers(nodes: tuple[int, ...]) -> None:
    learner = a_learner(trainer__model__codebook__nodes=nodes)
    trainer = learner.trainer
    users = list(range(1, 41))
    wanted = [1 + (7 * user) % 200 for user in users]
    batch = after(learner, users, wanted)
    folded = trainer.user_side(trainer.request(batch.table))
    view, budget = learner.refresher.view(), len(trainer.items)
    hits = {}
    for name, found in (
        ("index", search(trainer.model, folded, view, K, budget)),
        ("flat", search_flat(trainer.model, folded, view, K)),
    ):
        ids = trainer.items.ids.ids_of(found.rows_Bk.numpy())
        hits[name] = sum(item in row for item, row in zip(wanted, ids.tolist(), strict=True))
    metrics = answered(learner, batch)
    assert metrics["answered"] == 40
    assert 0 < hits["flat"] < 40
    for name, count in hits.items():
        assert metrics[f"recall_{name}_at_{K}"] == pytest.approx(count / 40)
        assert metrics[f"recall_{name}_total_at_{K}"] == pytest.approx(count / 40)


def test_what_a_user_is_answered_is_found_and_what_it_is_not_answered_is_missed() -> None:
    learner = a_learner()
    trainer, users = learner.trainer, list(range(1, 11))
    request = trainer.request(after(learner, users, [1] * 10, labels=0.0).table)
    rows = search_flat(trainer.model, trainer.user_side(request), learner.refresher.view(), 200).rows_Bk
    ranked = trainer.items.ids.ids_of(rows.numpy())
    for place, recall in ((0, 1.0), (K - 1, 1.0), (K, 0.0), (-1, 0.0)):
        metrics = answered(learner, after(learner, users, ranked[:, place].tolist()))
        assert metrics[f"recall_flat_at_{K}"] == recall
        assert metrics[f"recall_index_at_{K}"] == recall


def test_popularity_finds_exactly_the_most_liked_items() -> None:
    learner = a_learner(trainer__popularity_half_lives=(1e4, 1e6))
    liked = learner.trainer.items.liked
    rows = torch.from_numpy(learner.trainer.items.live_rows())
    best = liked.read(rows)[:, 1].topk(K)
    top_ids = learner.trainer.items.ids.ids_of(rows[best.indices].numpy()).tolist()
    worst = learner.trainer.items.ids.ids_of(rows[liked.read(rows)[:, 1].argmin()].view(1).numpy()).tolist()
    users = list(range(1, K + 1))
    assert answered(learner, after(learner, users, top_ids))[f"recall_popularity_at_{K}"] >= 0.9
    assert answered(learner, after(learner, users, worst * K))[f"recall_popularity_at_{K}"] == 0.0


def test_an_item_unknown_before_its_event_never_counts_as_found() -> None:
    learner = a_learner(evaluation__k=400)
    users = list(range(1, 11))
    metrics = answered(learner, after(learner, users, list(range(8_001, 8_011))))
    for name in ("index", "flat", "popularity"):
        assert metrics[f"recall_{name}_at_400"] == 0.0
    assert metrics["new_item_share"] == 1.0
    known = answered(learner, after(learner, users, [1] * 10))
    assert known["recall_flat_at_400"] == 1.0
    assert known["new_item_share"] == 0.0


def test_an_item_that_left_counts_as_missed() -> None:
    learner = a_learner(evaluation__k=400)
    batch = after(learner, list(range(1, 11)), [4] * 10)
    assert answered(learner, batch)["recall_index_at_400"] == 1.0
    learner.apply(items_batch([], removed=[4]))
    assert answered(learner, batch)["recall_index_at_400"] == 0.0


def test_the_share_of_items_that_searches_score_follows_the_budget() -> None:
    learner = a_learner(evaluation__budget=0.2, evaluation__k=5)
    batch = after(learner, list(range(1, 41)), [1] * 40)
    share = answered(learner, batch)["scored_fraction"]
    largest = learner.refresher.leaves.sizes.max() / len(learner.trainer.items)
    assert 0.19 <= share < 0.2 + largest


def test_searches_keep_to_the_beams() -> None:
    """With one node of the first level kept, at most that node's items are scored."""
    learner = a_learner(trainer__model__codebook__nodes=(4, 3), evaluation__beams=(1,))
    batch = after(learner, list(range(1, 41)), [1] * 40)
    share = answered(learner, batch)["scored_fraction"]
    of_node = sizes_of_level(learner.refresher.leaves.sizes, (4, 3), 0) / len(learner.trainer.items)
    assert of_node.min() <= share <= of_node.max() < 1.0


@pytest.mark.parametrize("beams", [(0,), (4, -1)])
def test_a_beam_keeps_at_least_one_node(beams: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="beams"):
        EvaluationConfig(beams=beams)


def test_while_leaves_are_filled_every_item_is_scored() -> None:
    learner = a_learner(3, refresh__fill_rows=20, evaluation__budget=0.1, evaluation__k=5)
    assert not learner.refresher.is_ready
    metrics = answered(learner, after(learner, list(range(1, 41)), [1] * 40))
    assert metrics["scored_fraction"] == 1.0
    assert metrics["recall_index_at_5"] == metrics["recall_flat_at_5"]


def test_the_budget_never_falls_below_twice_what_is_asked_for() -> None:
    evaluator = a_learner(1, evaluation__budget=0.01, evaluation__k=10).evaluator
    assert evaluator.budget(10_000) == 100
    assert evaluator.budget(200) == 20
    assert evaluator.budget(7) == 7


# -- test, then train --------------------------------------------------------------------------------------


def test_a_batch_is_answered_before_it_is_learnt() -> None:
    """The items of the batch are new; any knowledge of them would make every answer right."""
    learner = a_learner(evaluation__k=400)
    before = learner.evaluator.metrics()["answered"]
    learner.learn(after(learner, list(range(1, 31)), list(range(9_001, 9_031))))
    window = learner.evaluator.state()["window"][-30:]
    assert learner.evaluator.metrics()["answered"] == before + 30
    assert window[:, :2].sum() == 0
    assert window[:, 3].eq(1).all()


def test_answering_changes_nothing_that_learns() -> None:
    learner = a_learner()
    before = learner.parts()
    learner.evaluator.answer(after(learner, [1, 999], [1, 8_888]))
    now = learner.parts()
    for part in before.keys() - {"evaluation"}:
        assert all(bits(before[part][name]) == bits(now[part][name]) for name in before[part])


def test_an_untrained_model_is_not_asked() -> None:
    learner = Learner(changed(LEARNER, **EVERY_EVENT))
    learner.evaluator.answer(TwoGroups().batch())
    assert learner.evaluator.metrics() == {"answered": 0.0}


def test_events_that_were_not_liked_are_not_asked_for() -> None:
    learner = a_learner()
    assert answered(learner, after(learner, [1] * 20, [2] * 20, labels=0.0)) == {"answered": 0.0}
    mixed = after(learner, [1] * 20, [2] * 20, labels=[1.0, 0.0] * 10)
    assert answered(learner, mixed)["answered"] == 10


def test_what_evaluation_costs_is_bounded_by_the_events_trained() -> None:
    budgeted = a_learner(30, evaluation__scores_per_event=20.0)
    events_trained, num_items = budgeted.trainer.events_trained, len(budgeted.trainer.items)
    count = budgeted.evaluator.metrics()["answered"]
    assert 0 < count <= 1.5 * events_trained * 20.0 / num_items
    capped = a_learner(10, evaluation__max_queries=3)
    assert capped.evaluator.metrics()["answered"] == 9 * 3  # the first batch meets an untrained model


# -- the window --------------------------------------------------------------------------------------------


def test_the_window_is_the_newest_answers_and_the_total_all_of_them() -> None:
    learner = a_learner(evaluation__k=400, evaluation__window=25)
    evaluator = fresh_evaluator(learner)
    users = list(range(1, 11))
    for items in ([1] * 10, [8_001] * 10, [8_001] * 10, [1] * 10):
        evaluator.answer(after(learner, users, items))
    metrics = evaluator.metrics()
    assert metrics["recall_flat_at_400"] == pytest.approx(10 / 25)
    assert metrics["recall_flat_total_at_400"] == pytest.approx(20 / 40)
    assert metrics["answered"] == 40
    for _ in range(4):
        evaluator.answer(after(learner, users, [1] * 10))
    assert evaluator.metrics()["recall_flat_at_400"] == 1.0


def test_a_loaded_evaluator_goes_on_bit_for_bit() -> None:
    learner = a_learner(evaluation__window=70)
    undisturbed, restored = fresh_evaluator(learner), fresh_evaluator(learner)
    batches = TwoGroups(seed=5).batches(5)
    for batch in batches[:4]:
        undisturbed.answer(batch)
    restored.load({name: tensor.clone() for name, tensor in undisturbed.state().items()})
    for batch in batches[4:]:
        for evaluator in (undisturbed, restored):
            evaluator.answer(batch)
            left, right = undisturbed.state(), restored.state()
    assert {n: bits(t) for n, t in left.items()} == {n: bits(t) for n, t in right.items()}
    assert undisturbed.metrics() == restored.metrics()


# -- clicks ------------------------------------------------------------------------------------------------

ONCE = torch.ones(100)


def test_an_event_that_stands_for_several_counts_as_several() -> None:
    labels = (torch.arange(100) % 2 == 0).float()
    window = ClickWindow()
    window.add(torch.full((100,), float(np.log(0.25 / 0.75))), labels, torch.where(labels > 0, 1.0, 3.0))
    metrics = window.metrics()
    assert metrics["click_rate"] == pytest.approx(0.25)
    assert metrics["ne"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["calibration"] == pytest.approx(1.0, abs=1e-5)


def test_always_predicting_the_mean_rate_has_a_normalized_entropy_of_one() -> None:
    labels = (torch.arange(100) % 4 == 0).float()
    window = ClickWindow()
    for _ in range(5):
        window.add(torch.full((100,), float(np.log(0.25 / 0.75))), labels, ONCE)
    metrics = window.metrics()
    assert metrics["ne"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["calibration"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["click_rate"] == pytest.approx(0.25)


def test_better_predictions_lower_the_entropy_and_bolder_ones_raise_the_calibration() -> None:
    labels = (torch.arange(100) % 4 == 0).float()
    right, bold = ClickWindow(), ClickWindow()
    right.add(4 * labels - 2, labels, ONCE)
    bold.add(torch.zeros(100), labels, ONCE)
    assert right.metrics()["ne"] < 0.6
    assert bold.metrics()["ne"] > 1.0
    assert bold.metrics()["calibration"] == pytest.approx(2.0)


def test_clicks_of_the_past_fade() -> None:
    window = ClickWindow()
    window.add(torch.zeros(100), torch.ones(100), ONCE)
    for _ in range(1_500):
        window.add(torch.zeros(100), (torch.arange(100) < 10).float(), ONCE)
    assert window.metrics()["click_rate"] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_without_both_labels_there_are_no_click_figures(label: float) -> None:
    window = ClickWindow()
    window.add(torch.zeros(10), torch.full((10,), label), torch.ones(10))
    assert window.metrics() == {}


def test_a_log_with_labels_has_click_figures_and_one_without_has_none() -> None:
    assert "ne" in trained_learner(6, labelled=True).evaluator.metrics()
    assert "ne" not in trained_learner(6).evaluator.metrics()
