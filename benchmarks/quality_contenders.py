"""Who takes part: for each table of the benchmark ``quality``, its contenders and how each is made.

A contender's name and, behind ``|``, its setting tell results apart. Of several settings the tables show the
one that did best over all counted events: chosen in hindsight, in favour of whoever has the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.item_knn import GRID, HALF_LIVES, ItemKNN, Popularity
from benchmarks.quality_age import Aged
from benchmarks.quality_models import FLAT, INDEX, Model, TwoTower
from benchmarks.quality_run import Contender
from benchmarks.quality_worlds import nearest_power
from benchmarks.sasrec import SASRec, SASRecConfig
from benchmarks.settings import changed, choices
from index_refresh.learner import LearnerConfig
from trainers.codebook import CodebookConfig
from trainers.sizes import SIZES as MODEL_SIZES
from trainers.sizes import Size

MODELS, LEARNING, TRICKS, BALANCE, AGE = 1, 2, 3, 4, 5
TABLES = (MODELS, LEARNING, TRICKS, BALANCE, AGE)

# Members of a leaf, in the mean, where there are two levels of nodes above the items.
LEAF_ITEMS = 32
# A codebook that never starts: the model then has no nodes, and every search is flat.
NO_NODES = {"trainer.model.codebook.start_after_steps": 2**40}
SASREC_RATES = (1e-3, 3e-3)
TWO_TOWER_RATES = (2e-3, 4e-3)
IVF_LISTS = (0.25, 1.0)
RARELY = 2**40
# Where k-means moves the nodes, it does so about as often as an EBR index is built anew, and all leaves are
# filled within a step: until they are, every item is scored, which flatters recall and shows in the share.
RECLUSTERED = {"trainer.model.codebook.recluster_every_steps": 20, "refresh.fill_rows": 2**30}

_MODEL, _CODEBOOK = "trainer.model", "trainer.model.codebook"


# Of the item level alone: a flat model asks no node. XS is Two Tower.
_LEVEL = ("user_tower", "item_tower", "overarch_hidden")
SIZES: Mapping[str, Mapping[str, Any]] = {
    size.lower(): {f"{_MODEL}.{field}": settings[field] for field in _LEVEL}
    for size, settings in MODEL_SIZES.items()
    if size is not Size.XS
}
# What is taken away, and by which settings.
REMOVED: Mapping[str, Mapping[str, Any]] = {
    "interactions": {"interactions": ()},
    "balance": {f"{_CODEBOOK}.balance_weight": 0.0},
    "crowding": {f"{_CODEBOOK}.crowding": 0.0},
    "balance and crowding": {f"{_CODEBOOK}.balance_weight": 0.0, f"{_CODEBOOK}.crowding": 0.0},
    "reconstruction": {f"{_CODEBOOK}.reconstruction_weight": 0.0},
    "annealing": {f"{_CODEBOOK}.min_alpha": 20.0, f"{_CODEBOOK}.anneal_steps": 1},
    "node loss": {f"{_CODEBOOK}.index_weight": 0.0},
    "uniform negatives": {"trainer.uniform_negatives": 16},
    "repair": {"refresh.repair.every_steps": RARELY},
    "sweep": {"refresh.sweep_rows": 0},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of one contender, and which tables want it."""

    name: str
    tables: frozenset[int]
    make: Callable[[LearnerConfig], Contender]


def entries(tables: frozenset[int], *, whole_grids: bool = True) -> list[Entry]:
    """What has to run for these tables; each run once, however many tables want it."""
    every = [*_baselines(whole_grids), *_flat(), *_indexes(), *_modes(whole_grids), *_removals()]
    every.append(Entry("age", frozenset({AGE}), Aged))
    return [entry for entry in every if entry.tables & tables]


def _baselines(whole_grids: bool) -> Iterator[Entry]:
    only, count = frozenset({MODELS}), None if whole_grids else 1
    half_lives = HALF_LIVES if whole_grids else HALF_LIVES[3:4]
    grid = GRID if whole_grids else GRID[1:2]
    yield Entry("popularity", only, lambda _: Popularity(half_lives))
    yield Entry("item_knn", only, lambda _: ItemKNN(grid=grid))
    for rate in SASREC_RATES[:count]:
        yield Entry(f"sasrec| lr={rate:g}", only, partial(_sasrec, rate=rate))
    for rate in TWO_TOWER_RATES[:count]:
        yield Entry(f"two_tower| lr={rate:g}", only, partial(_two_tower, rate=rate))


def _sasrec(config: LearnerConfig, rate: float) -> SASRec:
    return SASRec(SASRecConfig(learning_rate=rate, seed=config.trainer.seed), f"| lr={rate:g}")


def _two_tower(config: LearnerConfig, rate: float) -> TwoTower:
    return TwoTower(changed(config, {"trainer.learning_rate": rate}), f"| lr={rate:g}", IVF_LISTS)


def _flat() -> Iterator[Entry]:
    for size, settings in SIZES.items():
        yield _model(f"monn_{size}", {MODELS}, {**settings, **NO_NODES}, {FLAT: f"monn_{size}"})
    alone = {**SIZES["m"], **NO_NODES, "interactions": ()}
    yield _model("monn_m_alone", {MODELS}, alone, {FLAT: "monn_m_alone"})


def _indexes() -> Iterator[Entry]:
    wanted = {MODELS, LEARNING, TRICKS, BALANCE}
    yield _model("hsnn2", wanted, {}, {INDEX: "hsnn2", FLAT: "hsnn2_flat"})

    def three(config: LearnerConfig) -> Contender:
        leaves = config.trainer.model.codebook.nodes[0] ** 2 / LEAF_ITEMS
        coarse = nearest_power(leaves**0.5)
        nodes = {f"{_CODEBOOK}.nodes": (coarse, max(2, round(leaves / coarse)))}
        return Model(changed(config, nodes), {INDEX: "hsnn3", FLAT: "hsnn3_flat"})

    yield Entry("hsnn3", frozenset({MODELS, BALANCE}), three)


def _modes(whole_grids: bool) -> Iterator[Entry]:
    """Ways to learn the index other than the default, as far as this version has them."""
    for field in ("learning", "assignment", "codes", "balance")[: None if whole_grids else 1]:
        default = CodebookConfig().model_dump().get(field)
        for choice in choices(CodebookConfig, field):
            if choice != default:
                settings = {f"{_CODEBOOK}.{field}": choice, **RECLUSTERED}
                yield _searched(f"{field}={choice}", LEARNING, settings)
    if whole_grids:
        yield _searched("share_gradient=true", LEARNING, {f"{_CODEBOOK}.share_gradient": True})


def _removals() -> Iterator[Entry]:
    for trick, settings in REMOVED.items():
        yield _searched(f"without {trick}", TRICKS, settings)


def _searched(name: str, table: int, settings: Mapping[str, Any]) -> Entry:
    return _model(name, {table}, settings, {INDEX: name, FLAT: f"{name}_flat"})


def _model(name: str, tables: set[int], settings: Mapping[str, Any], names: Mapping[str, str]) -> Entry:
    return Entry(name, frozenset(tables), lambda config: Model(changed(config, settings), names))
