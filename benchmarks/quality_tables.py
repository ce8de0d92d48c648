"""The five tables of the benchmark ``quality``, each from the results of the runs it wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.quality_contenders import AGE, BALANCE, LEARNING, MODELS, REMOVED, TRICKS
from benchmarks.quality_results import HEADLINE_K, Results, Spread
from benchmarks.quality_run import KS, Measured

TITLES = {
    MODELS: "Models",
    LEARNING: "How the index is learnt",
    TRICKS: "Each part taken away",
    BALANCE: "Balance of the index, hard assignment",
    AGE: "Age of the served model",
}
LABELS = {
    "popularity": "popularity, decayed",
    "item_knn": "item-kNN, incremental",
    "sasrec": "SASRec, online",
    "two_tower": "Two Tower (MoNN XS), flat",
    "ebr_ivf": "EBR: Two Tower + faiss IVF",
    "ebr_hnsw": "EBR: Two Tower + faiss HNSW",
    "monn_s": "MoNN S, flat",
    "monn_m": "MoNN M, flat",
    "monn_l": "MoNN L, flat",
    "monn_xl": "MoNN XL, flat",
    "monn_m_alone": "MoNN M without interactions, flat",
    "hsnn2": "HSNN, two levels",
    "hsnn2_flat": "HSNN, two levels, every item scored",
    "hsnn3": "HSNN, three levels",
    "hsnn3_flat": "HSNN, three levels, every item scored",
}
_INDEX_MODES = ("learning=", "assignment=", "codes=", "balance=", "share_gradient=")
_WITHOUT = tuple(f"without {trick}" for trick in REMOVED)


@dataclass(frozen=True, slots=True)
class Table:
    """One table for one world; the spread that its picture shows beside each row's name."""

    number: int
    world: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    picture: tuple[tuple[str, Spread], ...]
    axis: str

    def markdown(self) -> str:
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table(number: int, world: str, results: Results) -> Table | None:
    """A table of one world; None where nothing was run for it."""
    makers = {MODELS: _models, LEARNING: _learning, TRICKS: _tricks, BALANCE: _balance, AGE: _age}
    found = makers[number](world, results)
    return found if found.rows else None


def _models(world: str, results: Results) -> Table:
    there = [name for name in LABELS if results.of(world, name)]
    base = results.recall(world, "two_tower")
    rows = []
    for name in there:
        recalls = [_recall(world, name, results, k) for k in KS]
        rows.append(
            (
                _label(name, world, results),
                *(spread.text() for spread in recalls),
                "-" if not base else f"{recalls[1].mean / base:.3f}",
                _mean(world, name, results, lambda m: 100 * m.share_scored, "{:.2f} %"),
                _mean(world, name, results, lambda m: m.multiply_adds, "{:,.0f}"),
                _mean(world, name, results, lambda m: m.request_ms, "{:.2f}"),
                _mean(world, name, results, lambda m: m.ne, "{:.4f}"),
                _mean(world, name, results, lambda m: m.calibration, "{:.3f}"),
            )
        )
    columns = (
        *("model", *(f"recall@{k}" for k in KS), f"@{HEADLINE_K} over Two Tower", "items scored"),
        *("multiply-adds", "ms a request", "NE", "calibration"),
    )
    return _table(MODELS, world, columns, rows, there, results)


def _learning(world: str, results: Results) -> Table:
    there = [name for name in results.contenders(world) if name.startswith(_INDEX_MODES)]
    names = [name for name in ("hsnn2", *there) if results.of(world, name) and not name.endswith("_flat")]
    columns = ("index", *_INDEX_COLUMNS)
    rows = [(_mode(name), *_index_cells(world, name, results)) for name in names]
    return _table(LEARNING, world, columns, rows if len(names) > 1 else [], names, results)


def _tricks(world: str, results: Results) -> Table:
    names = [name for name in ("hsnn2", *_WITHOUT) if results.of(world, name)]
    columns = ("model", *_INDEX_COLUMNS)
    rows = [(_mode(name), *_index_cells(world, name, results)) for name in names]
    return _table(TRICKS, world, columns, rows if len(names) > 1 else [], names, results)


_INDEX_COLUMNS = (
    *(f"recall@{KS[0]}", f"recall@{HEADLINE_K}", f"flat @{HEADLINE_K}", "over flat", "items scored", "NE"),
    *("max/mean", "std/mean", "nodes used"),
)


def _index_cells(world: str, name: str, results: Results) -> tuple[str, ...]:
    flat = results.recall(world, f"{name}_flat")
    through = _recall(world, name, results, HEADLINE_K)
    return (
        _recall(world, name, results, KS[0]).text(),
        through.text(),
        "-" if flat is None else f"{flat:.3f}",
        "-" if not flat else f"{through.mean / flat:.3f}",
        _mean(world, name, results, lambda m: 100 * m.share_scored, "{:.2f} %"),
        _mean(world, name, results, lambda m: m.ne, "{:.4f}"),
        *_balance_cells(world, name, results, "index_"),
    )


def _balance_cells(world: str, name: str, results: Results, prefix: str) -> tuple[str, str, str]:
    return (
        _mean(world, name, results, lambda m: m.balance.get(f"{prefix}max_over_mean"), "{:.2f}"),
        _mean(world, name, results, lambda m: m.balance.get(f"{prefix}std_over_mean"), "{:.2f}"),
        _mean(world, name, results, lambda m: m.balance.get(f"{prefix}nodes_used"), "{:,.0f}")
        + _mean(world, name, results, lambda m: m.balance.get(f"{prefix}nodes"), " of {:,.0f}"),
    )


def _balance(world: str, results: Results) -> Table:
    rows, picture = [], []
    for name in ("hsnn2", "hsnn3"):
        for level in (1, 2, 3):
            prefix = "index_" if level == 1 else f"index_level{level}_"
            spread = results.spread(world, name, _balance_of(f"{prefix}max_over_mean"))
            if spread is None:
                continue
            label = f"{LABELS[name]}: level {level}"
            entropy = _mean(world, name, results, _balance_of(f"{prefix}entropy_ratio"), "{:.3f}")
            rows.append((label, *_balance_cells(world, name, results, prefix), entropy))
            picture.append((label, spread))
    columns = ("nodes", "max/mean", "std/mean", "nodes used", "entropy over even")
    return Table(BALANCE, world, columns, tuple(rows), tuple(picture), "largest node over the mean node")


def _balance_of(key: str) -> Callable[[Measured], float | None]:
    return lambda measured: measured.balance.get(key)


def _age(world: str, results: Results) -> Table:
    names = [name for name in results.contenders(world) if name.startswith("age=")]
    fresh = results.recall(world, "age=fresh")
    rows = []
    for name in names:
        recall = _recall(world, name, results, HEADLINE_K)
        rows.append(
            (
                name.removeprefix("age="),
                _recall(world, name, results, KS[0]).text(),
                recall.text(),
                "-" if not fresh else f"{recall.mean / fresh:.3f}",
                _mean(world, name, results, lambda m: m.ne, "{:.4f}"),
                _mean(world, name, results, lambda m: m.calibration, "{:.3f}"),
            )
        )
    columns = (
        *("published after", f"recall@{KS[0]}", f"recall@{HEADLINE_K}", "over fresh"),
        *("NE", "calibration"),
    )
    return _table(AGE, world, columns, rows, names, results)


# -- cells -------------------------------------------------------------------------------------------------


def _table(
    number: int,
    world: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    names: list[str],
    results: Results,
) -> Table:
    called = LABELS.__getitem__ if number == MODELS else _mode
    picture = tuple((called(name), _recall(world, name, results, HEADLINE_K)) for name in names)
    return Table(number, world, columns, tuple(rows), picture, f"recall@{HEADLINE_K}")


def _label(name: str, world: str, results: Results) -> str:
    """With the setting that did best, where there was a choice."""
    setting = results.of(world, name)[0].name.partition("|")[2].strip()
    return LABELS[name] + (f" ({setting})" if setting else "")


def _mode(name: str) -> str:
    return "default" if name == "hsnn2" else name


def _recall(world: str, name: str, results: Results, k: int) -> Spread:
    spread = results.spread(world, name, lambda measured: measured.recall[k])
    assert spread is not None, "only contenders that ran are in a table"
    return spread


def _mean(world: str, name: str, results: Results, of: Callable[[Measured], float | None], form: str) -> str:
    spread = results.spread(world, name, of)
    return "-" if spread is None else form.format(spread.mean)
