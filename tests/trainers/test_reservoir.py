from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import FEATURED, TRAINER, TwoGroups, catalogue, differing, events, items_batch, new_trainer

from consumers.batch import EntityKind
from consumers.errors import CheckpointError
from trainers.reservoir import HISTORY, ITEM, USER, Columns, ReplayConfig, Reservoir
from trainers.step import Events, TrainingStep
from trainers.towers import seeded
from trainers.trainer import OnlineTrainer, TrainerConfig


def with_replay(size: int = 200, share: float = 0.5) -> TrainerConfig:
    return TRAINER.model_copy(update={"replay": ReplayConfig(size=size, share=share)})


def some(first: int, count: int) -> Columns:
    numbers = torch.arange(first, first + count)
    return {
        USER: numbers + 1,
        ITEM: numbers + 1,
        HISTORY: torch.stack([numbers, numbers + 1], dim=1),
    }


# -- the sample --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(0, 30), max_size=8),
    size=st.integers(1, 40),
    leaves=st.sets(st.integers(1, 99)),
)
def test_it_never_holds_more_than_its_size_nor_what_left_nor_anything_twice(
    counts: list[int], size: int, leaves: set[int]
) -> None:
    reservoir, draw, first = Reservoir(ReplayConfig(size=size)), seeded(0), 0
    gone = torch.tensor(sorted(leaves), dtype=torch.int64)
    for number, count in enumerate(counts):
        reservoir.offer(some(first, count), draw)
        first += count
        assert reservoir.seen == first
        assert len(reservoir) <= min(size, first)
        if number == 3:
            reservoir.forget_items(gone)
            assert leaves.isdisjoint(reservoir.state()[ITEM].tolist() if len(reservoir) else [])
            assert not torch.isin(reservoir.state().get(HISTORY, torch.zeros(0)), gone).any()
    if len(counts) <= 3:
        assert len(reservoir) == min(size, first)
    items = reservoir.state()[ITEM].tolist() if len(reservoir) else []
    assert len(items) == len(set(items))


def test_every_event_of_the_stream_is_equally_likely_to_be_held() -> None:
    held, lives = np.zeros(100), 400
    for life in range(lives):
        reservoir = Reservoir(ReplayConfig(size=20))
        for first in range(0, 100, 7):
            reservoir.offer(some(first, min(7, 100 - first)), seeded(1000 * life + first))
        held[reservoir.state()[ITEM].numpy() - 1] += 1
    share = held.reshape(5, 20).sum(1) / lives / 20
    # Three standard deviations of a fifth of the stream.
    assert np.abs(share - 0.2).max() < 3 * np.sqrt(0.2 * 0.8 / lives / 20)


def test_after_removals_the_sample_is_not_filled_up_with_the_newest_events() -> None:
    newest = 0
    for life in range(60):
        reservoir, draw = Reservoir(ReplayConfig(size=50)), seeded(life)
        reservoir.offer(some(0, 1_000), draw)
        reservoir.forget_users(torch.arange(1, 501))
        reservoir.offer(some(1_000, 50), draw)
        newest += int((reservoir.state()[ITEM] > 1_000).sum())
    assert newest / 60 == pytest.approx(50 * 50 / 1_025, rel=0.35)


def test_a_sample_that_is_off_holds_and_draws_nothing_and_leaves_no_trace() -> None:
    draw = seeded(0)
    before = draw.get_state()
    reservoir = Reservoir(ReplayConfig())
    reservoir.offer(some(0, 10), draw)
    assert reservoir.draw(10, draw) is None
    assert reservoir.state() == {}
    assert torch.equal(before, draw.get_state())
    assert "replay" not in new_trainer().state()


def test_the_absence_of_candidates_is_that_of_independent_draws() -> None:
    reservoir = Reservoir(ReplayConfig(size=10))
    columns = some(0, 10)
    columns[ITEM] = torch.tensor([3, 3, 5, 9, 9, 9, 1, 2, 7, 3])
    reservoir.offer(columns, seeded(0))
    held = reservoir.state()[ITEM]
    found = reservoir.log_absence(torch.tensor([1, 3, 4, 9, 20]), 6).exp()
    expected = [(1 - float((held == item).sum()) / len(held)) ** 6 for item in (1, 3, 4, 9, 20)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(reservoir.log_absence(torch.tensor([3, 9]), 0), torch.zeros(2))


# -- in training -------------------------------------------------------------------------------------------


def test_a_replayed_event_is_what_it_was_when_it_was_read() -> None:
    trainer, stream = new_trainer(with_replay(size=500)), TwoGroups()
    first = stream.batch()
    seen = Events.read(first.table, trainer).columns
    trainer.learn(first)
    for batch in stream.batches(3):
        trainer.learn(batch)
    held = trainer.reservoir.state()
    for name, column in seen.items():
        assert torch.equal(held[name][: len(first)], column)


def test_reports_and_memories_are_of_the_streams_own_events() -> None:
    stream, trainer = TwoGroups(labelled=True), new_trainer(with_replay(share=1.0))
    plain = new_trainer()
    for batch in stream.batches(6):
        report, other = trainer.learn(batch), plain.learn(batch)
        assert (report.num_events, report.num_positive) == (other.num_events, other.num_positive)
        assert torch.equal(report.labels, other.labels)
        assert report.click_logits is not None
        assert len(report.click_logits) == len(batch)
        assert report.touched_rows.tolist() == other.touched_rows.tolist()
    assert trainer.events_trained == plain.events_trained
    for name in ("met.count", "liked.count", "rows.seen"):
        assert torch.equal(trainer.state()["items"][name], plain.state()["items"][name])
    assert torch.equal(trainer.state()["users"]["history.items"], plain.state()["users"]["history.items"])
    assert "model/item_tower.linear.weight" in differing(trainer.state(), plain.state())


def test_replayed_labels_alone_make_no_click_predictions() -> None:
    trainer = new_trainer(with_replay(share=1.0))
    trainer.learn(TwoGroups(labelled=True).batch())
    assert trainer.learn(events([1, 2, 3], [2, 3, 4])).click_logits is None


def test_the_correction_counts_the_items_of_replayed_events() -> None:
    """An item that only the sample brings back is in many steps' candidates, so it must not pass for rare."""
    trainer = new_trainer(with_replay(size=64, share=1.0))
    trainer.learn(events([1] * 64, [77] * 64))
    trainer.items.met.add(torch.ones(50_000, dtype=torch.int64), 50_000)  # long ago
    own = Events.read(events([1, 2], [78, 79]).table, trainer)
    step = TrainingStep(trainer, own)
    row = int(trainer.items.find(np.array([77]))[0])
    log_q = step._log_q_C[step.candidates_C == row]
    assert float(log_q) == pytest.approx(0.0, abs=1e-3)


def test_what_left_the_catalogue_is_replayed_no_more() -> None:
    trainer, stream = new_trainer(with_replay(size=500)), TwoGroups()
    for batch in stream.batches(4):
        trainer.learn(batch)
    gone = trainer.items.find(np.arange(1, 101))
    user = trainer.users.find(np.array([3]))
    trainer.remove_items(np.arange(1, 101))
    removed = items_batch([], removed=[3], kind=EntityKind.USER)
    trainer.apply_entities(removed)
    held = trainer.reservoir.state()
    assert 0 < len(held[ITEM]) < 256
    assert not np.isin(held[ITEM].numpy(), gone).any()
    assert not np.isin(held[HISTORY].numpy(), gone[gone > 0]).any()
    assert not np.isin(held[USER].numpy(), user).any()
    trainer.learn(stream.batch())


def test_a_loaded_state_replays_on_bit_for_bit() -> None:
    config = with_replay(size=100)
    first, second = OnlineTrainer(config, FEATURED.features()), OnlineTrainer(config, FEATURED.features())
    batches = TwoGroups(labelled=True, context=True).batches(8)
    first.apply_entities(catalogue(range(1, 50)))
    for batch in batches[:4]:
        first.learn(batch)
    second.load({part: {k: v.clone() for k, v in named.items()} for part, named in first.state().items()})
    for trainer in (first, second):
        for batch in batches[4:]:
            trainer.learn(batch)
    assert len(first.reservoir) == 100
    assert differing(first.state(), second.state()) == []


def test_replay_may_be_turned_on_resized_and_off_between_two_lives() -> None:
    plain, large = new_trainer(), new_trainer(with_replay(size=150))
    for batch in TwoGroups().batches(4):
        plain.learn(batch)
        large.learn(batch)
    on, small, off = new_trainer(with_replay()), new_trainer(with_replay(size=20)), new_trainer()
    on.load(plain.state())
    small.load(large.state())
    off.load(large.state())
    assert (len(on.reservoir), len(small.reservoir), len(off.reservoir)) == (0, 20, 0)
    for trainer in (on, small, off):
        trainer.learn(TwoGroups(seed=5).batch())


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(CheckpointError, match="equally long"):
        Reservoir(ReplayConfig(size=5)).load({"seen": torch.tensor(3), **some(0, 3), ITEM: torch.ones(2)})
