"""The figures that the benchmark ``quality`` ends with: by log, and the worst over the logs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.quality_results import Results
from benchmarks.quality_run import Measured

Figure = Callable[[Results, str], float | None]

EBR = ("ebr_ivf", "ebr_hnsw")
FLAT_MONN = ("monn_s", "monn_m", "monn_l", "monn_xl")


def _over(above: tuple[str, ...], below: tuple[str, ...]) -> Figure:
    """Recall@200 of the best of some contenders over that of the best of others."""

    def figure(results: Results, world: str) -> float | None:
        one, other = (_best(results, world, names) for names in (above, below))
        return None if one is None or not other else one / other

    return figure


def _best(results: Results, world: str, names: tuple[str, ...]) -> float | None:
    found = [results.recall(world, name) for name in names]
    return max((recall for recall in found if recall is not None), default=None)


def _of(contender: str, measure: Callable[[Measured], float | None]) -> Figure:
    def figure(results: Results, world: str) -> float | None:
        spread = results.spread(world, contender, measure)
        return None if spread is None else spread.mean

    return figure


def _joint_minus_separate_ne(results: Results, world: str) -> float | None:
    one, other = (
        results.spread(world, name, lambda measured: measured.ne) for name in ("hsnn2", "learning=separate")
    )
    return None if one is None or other is None else one.mean - other.mean


def _share(measured: Measured) -> float:
    return measured.share_scored


def _nodes_used(measured: Measured) -> float | None:
    used, nodes = (measured.balance.get(name) for name in ("index_nodes_used", "index_nodes"))
    return None if used is None or not nodes else used / nodes


# By key: how it is found, and which of several logs is the worst.
FIGURES: dict[str, tuple[Figure, Callable[[list[float]], float]]] = {
    "monn_over_two_tower_recall200": (_over(FLAT_MONN, ("two_tower",)), min),
    "hsnn2_over_flat_recall": (_over(("hsnn2",), ("hsnn2_flat",)), min),
    "hsnn2_scored_fraction": (_of("hsnn2", _share), max),
    "hsnn3_over_flat_recall": (_over(("hsnn3",), ("hsnn3_flat",)), min),
    "hsnn3_scored_fraction": (_of("hsnn3", _share), max),
    "hsnn_over_ebr_recall": (_over(("hsnn2", "hsnn3"), EBR), min),
    "joint_over_separate_recall": (_over(("hsnn2",), ("learning=separate",)), min),
    "joint_minus_separate_ne": (_joint_minus_separate_ne, max),
    "max_over_mean": (_of("hsnn2", lambda measured: measured.balance.get("index_max_over_mean")), max),
    "std_over_mean": (_of("hsnn2", lambda measured: measured.balance.get("index_std_over_mean")), max),
    "nodes_used_fraction": (_of("hsnn2", _nodes_used), min),
}


def figures(results: Results) -> dict[str, float | None]:
    """Every figure as ``<key>.<log>`` and, as ``<key>``, the worst over the logs; None where none was run."""
    found: dict[str, float | None] = {}
    for key, (figure, worst) in FIGURES.items():
        by_world = {world: figure(results, world) for world in results.worlds()}
        there = {world: value for world, value in by_world.items() if value is not None}
        found[key] = worst(list(there.values())) if there else None
        found |= {f"{key}.{world}": value for world, value in there.items()}
    return found
