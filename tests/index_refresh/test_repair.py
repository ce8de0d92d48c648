from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from streams import LEVELS, NO_IDS, TwoGroups, learner_config, trained_learner

from index_refresh.leaf_lists import NOWHERE
from index_refresh.refresher import Refresher
from index_refresh.repair import RepairConfig

# Every level of every shape, that below each parent as well as the first.
EVERY_LEVEL = [(nodes, level) for nodes in LEVELS for level in range(len(nodes))]
every_level = pytest.mark.parametrize(("nodes", "level"), EVERY_LEVEL, ids=str)
# Two nodes of a level can be no more than twice the mean; the default waits for four times.
EAGER: dict[str, Any] = {"every_steps": 10, "crowded": 1.4}


def refresher_of(nodes: tuple[int, ...] = (8,), **repair: Any) -> Refresher:
    config = learner_config(
        nodes, refresh__sweep_rows=0, refresh__repair=RepairConfig(**{**EAGER, "at_a_time": 1, **repair})
    )
    return trained_learner(9, config).refresher


def digits(refresher: Refresher, leaves: np.ndarray, level: int) -> np.ndarray:
    return np.stack(np.unravel_index(leaves, refresher.nodes), axis=1)[:, level]


def collapse(refresher: Refresher, level: int) -> np.ndarray:
    """Everything under node 0 of ``level``, its places on the other levels kept; the rows."""
    rows = np.flatnonzero(refresher.leaves.codes != NOWHERE)
    path = list(np.unravel_index(refresher.leaves.codes[rows].astype(np.int64), refresher.nodes))
    path[level] = np.zeros_like(path[level])
    refresher.leaves.move(rows, np.ravel_multi_index(path, refresher.nodes).astype(np.int64))
    return rows


@torch.no_grad()
def repair_of(refresher: Refresher, level: int) -> int:
    """Of this level alone."""
    return refresher._repair._repair(level)


def codes_of(refresher: Refresher) -> list[torch.Tensor]:
    return [codes.detach().clone() for codes in refresher.trainer.model.codebook.codes]


def changed_nodes(refresher: Refresher, before: list[torch.Tensor], level: int) -> list[int]:
    now = refresher.trainer.model.codebook.codes[level].detach()
    return torch.nonzero((now != before[level]).any(1)).flatten().tolist()


@every_level
def test_dead_nodes_are_revived_from_crowded_ones(nodes: tuple[int, ...], level: int) -> None:
    refresher = refresher_of(nodes)
    rows = collapse(refresher, level)
    before, version, epoch = codes_of(refresher), refresher.codebook_version, refresher.epoch
    revived_before = refresher.counts["revived"]
    assert repair_of(refresher, level) == 1
    (revived,) = changed_nodes(refresher, before, level)
    assert revived != 0
    sizes = refresher._repair._sizes(level)
    assert sizes[revived] > 0
    assert sizes.sum() == len(rows)
    assert set(np.flatnonzero(refresher.leaves.codes != NOWHERE)) == set(rows)
    for other in set(range(len(nodes))) - {level}:
        assert changed_nodes(refresher, before, other) == []
    assert refresher.counts["revived"] == revived_before
    assert (refresher.codebook_version, refresher.epoch > epoch) == (version, True)


@every_level
def test_a_revived_node_counts_as_popular_as_its_crowd_at_once(nodes: tuple[int, ...], level: int) -> None:
    refresher = refresher_of(nodes)
    collapse(refresher, level)
    refresher._observe()
    codebook, before = refresher.trainer.model.codebook, codes_of(refresher)
    bias_K = refresher.trainer.model.node_level(level).bias_K
    with torch.no_grad():
        bias_K.copy_(torch.arange(len(bias_K)))
    typical = codebook.log_density(level).view(-1, nodes[level])[:, 0].clone()
    had_members = refresher._repair._sizes_by_path(level)[:, 0] > 0
    repair_of(refresher, level)
    (revived,) = changed_nodes(refresher, before, level)
    assert bias_K[[revived, 0]].tolist() == [0.0, 0.0]
    density = codebook.log_density(level).view(-1, nodes[level])
    has_members = refresher._repair._sizes_by_path(level)[:, revived] > 0
    both = torch.from_numpy(has_members & had_members)
    assert both.any()
    torch.testing.assert_close(density[both, revived], typical[both], rtol=0, atol=0.7)


@every_level
def test_a_revived_node_is_what_the_levels_above_leave_of_a_member_of_the_crowd(
    nodes: tuple[int, ...], level: int
) -> None:
    refresher = refresher_of(nodes, members_at_a_time=1)
    rows = collapse(refresher, level)
    before, leaves = codes_of(refresher), refresher.leaves.codes[rows].astype(np.int64)
    repair_of(refresher, level)
    (revived,) = changed_nodes(refresher, before, level)
    vector = refresher.trainer.model.codebook.codes[level].detach()[revived]
    with torch.no_grad():
        residual = refresher.index_vectors(rows)
        for above in range(level):
            of_level = torch.from_numpy(digits(refresher, leaves, above))
            residual = residual - refresher.trainer.model.codebook.nodes(above)[of_level]
    assert float((residual - vector).abs().amax(1).min()) < 1e-5
    if level == 0:
        torch.testing.assert_close(vector.norm(), torch.tensor(1.0))


@every_level
def test_a_revived_node_starts_with_fresh_moments_and_the_others_keep_theirs(
    nodes: tuple[int, ...], level: int
) -> None:
    refresher = refresher_of(nodes)
    collapse(refresher, level)
    moments = [refresher.trainer.optimizer.state[c] for c in refresher.trainer.model.codebook.codes]
    for of_level, name in itertools.product(moments, ("exp_avg", "exp_avg_sq")):
        of_level[name].fill_(7.0)
    before = codes_of(refresher)
    repair_of(refresher, level)
    (revived,) = changed_nodes(refresher, before, level)
    for number, name in itertools.product(range(len(nodes)), ("exp_avg", "exp_avg_sq")):
        expected = torch.full_like(moments[number][name], 7.0)
        if number == level:
            expected[revived] = 0.0
        assert torch.equal(moments[number][name], expected)


@every_level
def test_the_crowd_gives_half_of_its_usage(nodes: tuple[int, ...], level: int) -> None:
    refresher = refresher_of(nodes)
    collapse(refresher, level)
    codebook = refresher.trainer.model.codebook
    draw = torch.Generator().manual_seed(0)
    codebook.usage_P.copy_(torch.rand(codebook.usage_P.shape, generator=draw))
    usage, before = codebook.usage_P.reshape(nodes).movedim(level, 0).clone(), codes_of(refresher)
    repair_of(refresher, level)
    (revived,) = changed_nodes(refresher, before, level)
    after = codebook.usage_P.reshape(nodes).movedim(level, 0)
    torch.testing.assert_close(after[0], usage[0] / 2)
    torch.testing.assert_close(after[revived], usage[revived] + usage[0] / 2)
    others = [node for node in range(nodes[level]) if node not in (0, revived)]
    assert torch.equal(after[others], usage[others])


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
def test_balanced_nodes_are_left_alone(nodes: tuple[int, ...]) -> None:
    refresher = refresher_of(nodes)
    rows = np.flatnonzero(refresher.leaves.codes != NOWHERE)
    refresher.leaves.move(rows, np.arange(len(rows)) % refresher.leaves.num_leaves)
    before = codes_of(refresher)
    assert refresher._repair.run() == 0
    assert all(changed_nodes(refresher, before, level) == [] for level in range(len(nodes)))


def test_dead_nodes_without_a_crowd_stay_dead() -> None:
    """Two of eight nodes share everything: neither is six times the mean."""
    refresher = refresher_of(crowded=6.0, at_a_time=8)
    rows = np.flatnonzero(refresher.leaves.codes != NOWHERE)
    refresher.leaves.move(rows, np.arange(len(rows)) % 2)
    assert refresher._repair.run() == 0


@pytest.mark.parametrize("at_a_time", [0, 1, 2])
def test_repairs_of_a_level_are_bounded(at_a_time: int) -> None:
    """Three crowds and five dead nodes; no crowd is split twice at once."""
    refresher = refresher_of(at_a_time=at_a_time)
    rows = np.flatnonzero(refresher.leaves.codes != NOWHERE)
    refresher.leaves.move(rows, np.arange(len(rows)) % 3)
    before = codes_of(refresher)
    assert refresher._repair.run() == at_a_time
    assert len(changed_nodes(refresher, before, 0)) == at_a_time


def test_every_crowd_is_split_once_where_the_bound_allows_it() -> None:
    refresher = refresher_of(at_a_time=8)
    rows = np.flatnonzero(refresher.leaves.codes != NOWHERE)
    refresher.leaves.move(rows, np.arange(len(rows)) % 3)
    assert refresher._repair.run() == 3


def test_at_most_so_many_members_of_a_crowd_are_reassigned_at_once() -> None:
    refresher = refresher_of(members_at_a_time=5)
    rows = collapse(refresher, 0)
    refresher._repair.run()
    assert (refresher.leaves.codes[rows] != 0).sum() <= 5
    moved_in_a_round = refresher.counts["moved"]
    refresher.config = refresher.config.model_copy(update={"sweep_rows": 10**6, "hysteresis": 0.0})
    refresher.trainer.step = 1
    refresher.after_step(NO_IDS)
    assert refresher.counts["moved"] > moved_in_a_round + 5


def test_repair_happens_when_due_and_is_counted() -> None:
    refresher = refresher_of()
    collapse(refresher, 0)
    before, version, epoch = (
        refresher.counts["revived"],
        refresher.codebook_version,
        refresher.epoch,
    )
    refresher.trainer.step = 10_001
    refresher.after_step(NO_IDS)
    assert refresher.counts["revived"] == before
    refresher.trainer.step = 10_000
    refresher.after_step(NO_IDS)
    assert refresher.counts["revived"] == before + 1
    assert refresher.codebook_version == version + 1
    assert refresher.epoch > epoch


@pytest.mark.parametrize("nodes", LEVELS, ids=str)
def test_a_repaired_model_learns_on(nodes: tuple[int, ...]) -> None:
    config = learner_config(nodes, refresh__repair=RepairConfig(**{**EAGER, "every_steps": 2}))
    learner = trained_learner(9, config)
    revived = learner.refresher.counts["revived"]
    collapse(learner.refresher, 0)
    learner.refresher.repair()
    for batch in TwoGroups(seed=4).batches(6):
        learner.learn(batch)
    assert learner.refresher.counts["revived"] > revived
    assert learner.refresher.metrics()["index_nodes_used"] > 1
    assert all(torch.isfinite(p).all() for p in learner.trainer.model.parameters())
