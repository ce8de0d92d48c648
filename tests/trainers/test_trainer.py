from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from streams import (
    COLOUR,
    DEVICE,
    LEVELS,
    PRICE,
    QUICK,
    START_MS,
    TAGS,
    TRAINER,
    TwoGroups,
    catalogue,
    differing,
    events,
    items_batch,
    new_trainer,
)
from torch import Tensor

from consumers import columns as c
from consumers.batch import EntityKind, EventBatch
from trainers.codebook import CodebookConfig
from trainers.entities import BORN, VECTOR
from trainers.hsnn import UserSide
from trainers.step import Events, TrainingStep
from trainers.towers import seeded
from trainers.trainer import FeatureSets, OnlineTrainer, TrainerConfig, UserRequest

levels = pytest.mark.parametrize("nodes", LEVELS, ids=str)
FEATURES = FeatureSets(item=(COLOUR, PRICE, TAGS), user=(DEVICE,), context=(DEVICE,))


def config(**updates: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({**dict(TRAINER), **updates})


def of_levels(nodes: tuple[int, ...]) -> TrainerConfig:
    codebook = TRAINER.model.codebook.model_copy(update={"nodes": nodes})
    return config(model=TRAINER.model.model_copy(update={"codebook": codebook}))


def start_codebook(trainer: OnlineTrainer) -> None:
    """What the index does once there is enough to start with."""
    rows = torch.from_numpy(trainer.items.live_rows())
    side = trainer.refresh_vectors(rows)
    with torch.no_grad():
        z = trainer.model.index_vectors(side.vectors_CV)
        trainer.model.codebook.start(z, trainer.step, trainer.generator)


def trained(batches: list[EventBatch], trainer: OnlineTrainer | None = None) -> OnlineTrainer:
    """Learn batches as the index would have it: vectors refreshed after each, a codebook after the third."""
    trainer = trainer or new_trainer()
    for batch in batches:
        report = trainer.learn(batch)
        trainer.refresh_vectors(torch.from_numpy(report.touched_rows))
        if trainer.step == 3:
            start_codebook(trainer)
    return trainer


def item_scores(trainer: OnlineTrainer, users: np.ndarray, time_ms: int) -> tuple[Tensor, Tensor]:
    """Live item rows and every user's flat score of each."""
    rows = torch.from_numpy(trainer.items.live_rows())
    side, asked = trainer.item_side(rows), trainer.user_side(request_of(trainer, users, time_ms))
    return rows, asked.item.score(side.vectors_CV) + side.bias_C


def request_of(trainer: OnlineTrainer, users: np.ndarray, time_ms: int) -> UserRequest:
    asked = events(users, np.zeros(len(users)), times=np.full(len(users), time_ms), labels=0.0)
    return trainer.request(asked.table)


def all_tensors_are_finite(trainer: OnlineTrainer) -> bool:
    parts = trainer.state()
    learnt = [*parts["model"].values(), *parts["optimizer"].values()]
    tables = [
        t for part in ("items", "users") for name, t in parts[part].items() if not name.endswith("numbers")
    ]
    return all(bool(torch.isfinite(tensor).all()) for tensor in learnt + tables)


# -- learning ----------------------------------------------------------------------------------------------


def test_a_model_that_learnt_who_likes_what_beats_popularity_clearly() -> None:
    stream = TwoGroups()
    trainer = trained(stream.batches(150), new_trainer(QUICK))
    users = np.arange(1, stream.num_users + 1)
    rows, scores = item_scores(trainer, users, trainer.watermark_ms)
    best = trainer.items.ids.ids_of(rows[scores.topk(50).indices].numpy())
    of_the_own_group = (best % 2 == users[:, None] % 2).mean()
    popular = trainer.items.liked.read(rows).sum(1).topk(50).indices
    of_popular = (trainer.items.ids.ids_of(rows[popular].numpy())[None] % 2 == users[:, None] % 2).mean()
    assert of_popular < 0.6
    assert of_the_own_group > 0.85


def test_a_user_never_met_is_understood_from_the_items_it_just_liked() -> None:
    stream = TwoGroups()
    trainer = trained(stream.batches(150), new_trainer(QUICK))
    liked = np.array([4, 8, 10, 30, 52])
    trainer.learn(events(np.full(5, 999), liked, times=np.full(5, trainer.watermark_ms)))
    rows, scores = item_scores(trainer, np.array([999]), trainer.watermark_ms)
    best = trainer.items.ids.ids_of(rows[scores[0].topk(30).indices].numpy())
    assert (best % 2 == 0).mean() > 0.8


def test_losses_fall_and_click_predictions_become_better_than_the_mean_rate() -> None:
    stream, trainer = TwoGroups(labelled=True), new_trainer(QUICK)
    reports = []
    for batch in stream.batches(150):
        reports.append(trainer.learn(batch))
        trainer.refresh_vectors(torch.from_numpy(reports[-1].touched_rows))
    assert np.mean([r.item_loss for r in reports[-10:]]) < np.mean([r.item_loss for r in reports[:10]])
    logits = torch.cat([r.click_logits for r in reports[-20:] if r.click_logits is not None])
    labels = torch.cat([r.labels for r in reports[-20:]])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    rate = labels.mean()
    entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
    assert loss < 0.8 * entropy


@levels
def test_every_level_learns_from_labels(nodes: tuple[int, ...]) -> None:
    """Of each level its codebook, its networks and how much it hears from the level above."""
    stream, trainer = TwoGroups(labelled=True), new_trainer(of_levels(nodes))
    trained(stream.batches(4), trainer)
    for level in range(len(nodes)):  # as the index would have told it
        density = trainer.model.codebook.log_density(level)
        density.copy_(torch.randn(density.shape, generator=seeded(level)))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    reports = [trainer.learn(batch) for batch in stream.batches(8)]
    assert all(report.node_loss > 0 for report in reports)
    unmoved = [name for name, p in trainer.model.named_parameters() if torch.equal(p.detach(), before[name])]
    assert unmoved == []
    expected = {f"node_levels.{level}.parent_weight" for level in range(1, len(nodes))}
    expected |= {f"codebook.codes.{level}" for level in range(len(nodes))}
    assert expected <= before.keys()
    assert len(trainer.model.codebook.codes) == len(nodes)


def reached_by_the_node_loss(learning: dict[str, Any]) -> set[str]:
    """Networks and tables with a gradient of the node loss alone."""
    codebook = {**dict(TRAINER.model.codebook), "nodes": (4, 3), **learning}
    model = TRAINER.model.model_copy(update={"codebook": CodebookConfig(**codebook)})
    stream = TwoGroups()
    trainer = trained(stream.batches(5), new_trainer(config(model=model)))
    step = TrainingStep(trainer, Events.read(stream.batch().table, trainer))
    users, items, (item_rows, user_rows, *_) = step._forward_towers()
    scores, _ = step._index(users, items)
    _, node_loss = step._softmax(users, items, scores)
    trainer.optimizer.zero_grad(set_to_none=True)
    node_loss.backward()
    named = {**dict(trainer.model.named_parameters()), "items": item_rows.leaf_ND, "users": user_rows.leaf_ND}
    return {name for name, leaf in named.items() if leaf.grad is not None and bool((leaf.grad != 0).any())}


NODE_LEVELS = {f"node_levels.{level}.bias_K" for level in range(2)}
INDEX = {"codebook.codes.0", "codebook.codes.1", "index_projection.weight"}
# Users read the embeddings of the items that they liked, so these are shared.
INPUTS = {"items", "users"}
ITEM_TOWER = {"item_tower.linear.weight"}
# By the way of learning: what the node loss reaches; the rest of the above it must not.
REACHED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "joint": ({}, INDEX | INPUTS),
    "joint, shared": ({"share_gradient": True}, INDEX | INPUTS | ITEM_TOWER),
    "averaged codes": ({"codes": "ema"}, {"index_projection.weight"} | INPUTS),
    "em": ({"learning": "em"}, INPUTS),
    "em, shared": ({"learning": "em", "share_gradient": True}, INPUTS | ITEM_TOWER),
    "separate": ({"learning": "separate"}, set()),
}


@pytest.mark.parametrize("assignment", ["soft", "straight_through"])
@pytest.mark.parametrize("way", REACHED)
def test_the_node_loss_reaches_what_the_way_of_learning_allows_and_nothing_else(
    way: str, assignment: str
) -> None:
    learning, expected = REACHED[way]
    found = reached_by_the_node_loss({**learning, "assignment": assignment})
    assert found & (INDEX | INPUTS | ITEM_TOWER) == expected
    assert found >= NODE_LEVELS


def test_averaged_codes_move_at_every_step_without_a_gradient() -> None:
    codebook = TRAINER.model.codebook.model_copy(update={"codes": "ema", "nodes": (4, 3)})
    trainer = new_trainer(config(model=TRAINER.model.model_copy(update={"codebook": codebook})))
    stream = TwoGroups()
    trained(stream.batches(3), trainer)
    before = [codes.clone() for codes in trainer.model.codebook.codes]
    trainer.learn(stream.batch())
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.codebook.codes, strict=True))
    assert not any(name.startswith("codebook.codes") for name in trainer.state()["optimizer"])
    assert all_tensors_are_finite(trainer)


# -- the same again ----------------------------------------------------------------------------------------


def featured_stream(trainer: OnlineTrainer, batches: list[EventBatch], first: int = 0) -> None:
    """Events with context, and catalogue changes that depend on the step alone."""
    for number, batch in enumerate(batches, start=first):
        if number % 3 == 0:
            trainer.apply_entities(catalogue(range(1 + number, 40 + number), seed=number))
        if number % 5 == 4:
            trainer.remove_items(np.arange(number, number + 6))
        trained([batch], trainer)


@levels
def test_the_same_stream_gives_the_same_bits(nodes: tuple[int, ...]) -> None:
    batches = TwoGroups(labelled=True, context=True).batches(12)
    first, second = (OnlineTrainer(of_levels(nodes), FEATURES) for _ in range(2))
    featured_stream(first, batches)
    torch.manual_seed(77)  # nobody else's random state may matter
    np.random.seed(78)
    featured_stream(second, batches)
    assert differing(first.state(), second.state()) == []


def test_another_seed_gives_another_model() -> None:
    batches = TwoGroups().batches(2)
    first = trained(batches, new_trainer(config(seed=1)))
    second = trained(batches, new_trainer(config(seed=2)))
    assert "model/item_tower.linear.weight" in differing(first.state(), second.state())


@levels
@pytest.mark.parametrize("stop", [1, 5])
def test_a_loaded_state_learns_on_bit_for_bit(stop: int, nodes: tuple[int, ...]) -> None:
    batches = TwoGroups(labelled=True, context=True).batches(10)
    undisturbed, restored = (OnlineTrainer(of_levels(nodes), FEATURES) for _ in range(2))
    featured_stream(undisturbed, batches[:stop])
    copy = {part: {k: v.clone() for k, v in named.items()} for part, named in undisturbed.state().items()}
    restored.load(copy)
    assert differing(undisturbed.state(), restored.state()) == []
    for trainer in (undisturbed, restored):
        featured_stream(trainer, batches[stop:], first=stop)
    assert undisturbed.step == restored.step == 10
    assert differing(undisturbed.state(), restored.state()) == []


# -- odd batches -------------------------------------------------------------------------------------------

ODD = {
    "one event": events([1], [2]),
    "one event that was not liked": events([1], [2], labels=0.0),
    "nothing that was liked": events([1, 2, 3], [2, 4, 6], labels=0.0),
    "only new users and items": events([501, 502], [601, 602]),
    "one user with more events than places": events([1] * 30, range(1, 31)),
    "one item many times": events(range(1, 31), [7] * 30),
    "one event many times": events([1] * 9, [7] * 9, times=[START_MS] * 9),
    "no event": events([], []),
}


@pytest.mark.parametrize("started", [False, True], ids=["before the codebook", "with a codebook"])
@pytest.mark.parametrize("nodes", [(8,), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("name", ODD)
def test_odd_batches_are_learnt_without_harm(name: str, nodes: tuple[int, ...], started: bool) -> None:
    trainer = trained(TwoGroups().batches(4 if started else 1), new_trainer(of_levels(nodes)))
    step, seen = trainer.step, trainer.events_trained
    report = trainer.learn(ODD[name])
    assert (trainer.step, trainer.events_trained) == (step + 1, seen + len(ODD[name]))
    assert report.num_positive == int((ODD[name].table.column(c.LABEL).to_numpy() > 0).sum())
    assert np.isfinite([report.item_loss, report.node_loss]).all()
    trained([TwoGroups(seed=9).batch()], trainer)
    assert all_tensors_are_finite(trainer)


@pytest.mark.parametrize("name", ODD)
def test_the_very_first_batch_may_be_odd(name: str) -> None:
    trainer = new_trainer()
    trainer.learn(ODD[name])
    trained(TwoGroups(labelled=True).batches(4), trainer)
    assert all_tensors_are_finite(trainer)


def test_no_uniform_negatives_harm_nothing() -> None:
    trainer = trained(TwoGroups().batches(6), new_trainer(config(uniform_negatives=0)))
    assert trainer.model.codebook.is_started
    assert all_tensors_are_finite(trainer)


def test_a_catalogue_that_nearly_emptied_harms_nothing() -> None:
    """Most uniform draws, and sometimes all of them, then hit rows that nobody owns."""
    trainer = trained(TwoGroups().batches(8), new_trainer(config(uniform_negatives=2)))
    trainer.remove_items(np.arange(3, 201))
    for number in range(30):
        trained([events([1, 2], [1, 2], start=10_000 + number)], trainer)
    assert all_tensors_are_finite(trainer)


# -- ids that come and go ----------------------------------------------------------------------------------


def test_new_users_and_items_are_known_after_their_batch_and_not_before() -> None:
    trainer = trained(TwoGroups().batches(2))
    batch = events([501], [601])
    request = trainer.request(batch.table)
    assert request.rows_B.tolist() == [0]
    assert trainer.items.find(np.array([601])).tolist() == [0]
    report = trainer.learn(batch)
    assert report.new_rows.tolist() == trainer.items.find(np.array([601])).tolist()
    assert trainer.users.find(np.array([501]))[0] > 0
    assert trainer.request(batch.table).history_BN[0, 0] == report.new_rows[0]


def test_unknown_users_are_answered_alike_and_change_nothing() -> None:
    trainer = trained(TwoGroups().batches(5))
    before = {part: {k: v.clone() for k, v in named.items()} for part, named in trainer.state().items()}
    _, scores = item_scores(trainer, np.array([9_001, 9_002, -5]), trainer.watermark_ms)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0].expand_as(scores), scores)
    assert differing(before, trainer.state()) == []


def test_removed_items_vanish_from_histories_and_candidates() -> None:
    trainer = trained(TwoGroups().batches(6))
    gone = np.arange(1, 60)
    freed = set(trainer.items.find(gone).tolist()) - {0}
    everyone = torch.from_numpy(trainer.users.live_rows())
    assert freed & set(trainer.users.history.read(everyone).flatten().tolist())
    assert set(trainer.remove_items(gone).tolist()) == freed
    assert not freed & set(trainer.users.history.read(everyone).flatten().tolist())
    assert not freed & set(trainer.sample_live_items(5_000).tolist())
    assert not trainer.items.find(gone).any()
    assert trainer.items.rows[VECTOR][sorted(freed)].eq(0).all()


def test_uniform_negatives_are_every_live_item_about_equally_often() -> None:
    trainer = trained(TwoGroups(num_items=50).batches(6))
    trainer.remove_items(np.arange(1, 21))
    drawn = torch.bincount(trainer.sample_live_items(20_000), minlength=trainer.items.ids.num_rows)
    live = torch.from_numpy(trainer.items.live_rows())
    assert drawn.sum() == drawn[live].sum()
    assert drawn[live].min() > 0.7 * drawn[live].float().mean()
    assert drawn[live].max() < 1.3 * drawn[live].float().mean()


def test_catalogue_messages_tell_which_rows_changed_and_which_were_freed() -> None:
    trainer = OnlineTrainer(TRAINER, FEATURES)
    changed, freed = trainer.apply_entities(catalogue([1, 2, 3]))
    assert (changed.tolist(), freed.tolist()) == ([1, 2, 3], [])
    values = {"colour": ["red"], "price": [2.0], "tags": [["a"]]}
    changed, freed = trainer.apply_entities(items_batch([3], FEATURES.item, values, removed=[1, 55]))
    assert (changed.tolist(), freed.tolist()) == ([3], [1])
    assert len(trainer.items) == 2


def test_user_messages_give_users_features_and_take_them_away() -> None:
    trainer = OnlineTrainer(TRAINER, FEATURES)
    values = {"device": ["phone", "desk"]}
    changed, freed = trainer.apply_entities(items_batch([5, 6], (DEVICE,), values, kind=EntityKind.USER))
    assert (len(changed), len(freed), len(trainer.users)) == (0, 0, 2)
    trainer.apply_entities(items_batch([], (DEVICE,), {"device": []}, removed=[5], kind=EntityKind.USER))
    assert trainer.users.find(np.array([5, 6])).tolist() == [0, 2]


def test_a_catalogue_read_before_the_first_event_is_as_old_as_the_stream() -> None:
    """Its items must not look as if they had been waiting since 1970: they would be taken for expired."""
    trainer = new_trainer()
    trainer.apply_entities(items_batch([1, 2, 3]))
    trainer.learn(events([1, 2], [1, 2]))
    ages = trainer.watermark_ms - trainer.items.rows[BORN][trainer.items.live_rows()]
    assert ages.max() <= 60_000
    assert trainer.items.idle_since(START_MS).tolist() == []


# -- test-then-train ---------------------------------------------------------------------------------------


def prepared() -> OnlineTrainer:
    """The same state each time: users 1 and 2 with a past, codebook started, both labels met."""
    return trained(TwoGroups(labelled=True).batches(12))


def first_logits(trainer: OnlineTrainer, batch: EventBatch) -> Tensor:
    logits = trainer.learn(batch).click_logits
    assert logits is not None
    return logits


def test_what_a_batch_says_about_an_item_is_not_known_when_the_batch_is_scored() -> None:
    """User 1 meets item 30 in both batches; only the other events differ, and they are all about item 30."""
    later = START_MS + 3_600_000 * 24
    about_others = events(
        [1, 3, 4, 5], [30, 31, 32, 33], times=[later, later + 1, later + 2, later + 3], labels=[1, 0, 1, 1]
    )
    about_it = events(
        [1, 3, 4, 5], [30, 30, 30, 30], times=[later, later + 1, later + 2, later + 3], labels=[1, 0, 1, 1]
    )
    others, it = first_logits(prepared(), about_others), first_logits(prepared(), about_it)
    torch.testing.assert_close(others[0], it[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hours", [0, 24, 24 * 365])
def test_an_event_is_scored_the_same_however_long_its_batch_lasts(hours: int) -> None:
    """The clock that ages items must not run ahead to the end of the batch."""
    at = START_MS + 3_600_000
    short = events([1, 3], [30, 31], times=[at, at], labels=[1, 0])
    long = events([1, 3], [30, 31], times=[at, at + hours * 3_600_000], labels=[1, 0])
    torch.testing.assert_close(
        first_logits(prepared(), short)[0], first_logits(prepared(), long)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_label_does_not_betray_itself(label: float) -> None:
    at = START_MS + 3_600_000
    flipped = events([1, 3, 4], [30, 31, 32], times=[at] * 3, labels=[label, 0, 1])
    reference = events([1, 3, 4], [30, 31, 32], times=[at] * 3, labels=[1, 0, 1])
    torch.testing.assert_close(
        first_logits(prepared(), flipped), first_logits(prepared(), reference), rtol=1e-5, atol=1e-5
    )


def test_what_a_user_liked_earlier_in_the_batch_is_known_later_in_it() -> None:
    at = START_MS + 3_600_000
    after_others = events([1, 1, 3], [44, 30, 31], times=[at, at + 1, at], labels=[1, 1, 0])
    after_nothing = events([1, 1, 3], [44, 30, 31], times=[at, at + 1, at], labels=[0, 1, 0])
    first, second = first_logits(prepared(), after_others), first_logits(prepared(), after_nothing)
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-5)
    assert (first[1] - second[1]).abs() > 1e-6


@levels
def test_a_batch_is_scored_exactly_as_it_would_have_been_just_before(nodes: tuple[int, ...]) -> None:
    """Its items were last met a month ago, and not at this very moment, as the batch itself would have it."""
    trainer = trained(TwoGroups(labelled=True).batches(12), new_trainer(of_levels(nodes)))
    later = trainer.watermark_ms + 30 * 86_400_000
    trainer.learn(events([1, 2], [50, 51], times=[later] * 2))
    batch = events([1, 3, 4], [30, 31, 32], times=[later + 1_000] * 3, labels=[1, 0, 1])
    users = trainer.user_side(trainer.request(batch.table))
    side = trainer.item_side(torch.from_numpy(trainer.items.find(np.array([30, 31, 32]))))
    with torch.no_grad():
        item_logits = users.item.score(side.vectors_CV) + side.bias_C
        node_logits = logits_of_nodes(trainer, users, side.vectors_CV)
        logits = trainer.model.ensemble(item_logits, node_logits).diagonal()
        expected = trainer.model.calibration["item"](logits + float(np.log(len(trainer.items))))
    torch.testing.assert_close(first_logits(trainer, batch), expected, rtol=1e-5, atol=1e-5)


def logits_of_nodes(trainer: OnlineTrainer, users: UserSide, vectors: Tensor) -> Tensor:
    """Of the last level, every user with every item: pseudo items meet each level's network in turn."""
    model = trainer.model
    found = model.codebook.soft_assignment(model.index_vectors(vectors), trainer.step)
    logits = model.node_logits(users) @ found[0].affinity_CK.T
    for level in range(1, model.num_levels):
        own = users.nodes[level].score(model.node_level(level).tower(found[level].pseudo_CD))
        own = own + model.node_bias(level)[found[level].path_C]
        logits = own + model.node_level(level).parent_weight * logits
    return logits


def test_a_batch_becomes_history_popularity_and_time_once_it_is_learnt() -> None:
    trainer = prepared()
    row = torch.from_numpy(trainer.items.find(np.array([30])))
    met, liked = trainer.items.met.read(row), trainer.items.liked.read(row)
    at = trainer.watermark_ms + 9_000
    trainer.learn(events([1, 3], [30, 30], times=[at, at], labels=[1, 0]))
    assert (trainer.items.met.read(row) - met > 1.5).all()
    assert (trainer.items.liked.read(row) - liked > 0.5).all()
    assert (trainer.items.liked.read(row) - liked < 1.1).all()
    user = torch.from_numpy(trainer.users.find(np.array([1])))
    assert trainer.users.history.read(user)[0, 0] == row
    assert trainer.watermark_ms == at
    assert trainer.items.rows["last_seen"][row] == at


def test_late_events_do_not_turn_back_the_clock() -> None:
    trainer = prepared()
    before = trainer.watermark_ms
    trainer.learn(events([1], [30], times=[START_MS - 86_400_000]))
    assert trainer.watermark_ms == before


def test_a_trainer_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(TwoGroups().batches(4))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(2, generator=seeded(1)), torch.rand(2, generator=seeded(1)))
