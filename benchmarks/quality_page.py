"""The page that the benchmark ``quality`` leaves: how it was run, its tables, and a picture for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.quality_picture import draw
from benchmarks.quality_results import FILE, Results
from benchmarks.quality_tables import TITLES, Table

PAGE = "quality.md"


def write_page(
    folder: Path, found: Sequence[Sequence[Table]], results: Results, about: Mapping[str, object]
) -> None:
    """Write the page and its pictures; ``found`` has the tables of each number, a table a world."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Retrieval quality", *_preface(results, about)]
    for tables in found:
        title, picture = TITLES[tables[0].number], f"quality-{tables[0].number}.png"
        draw(folder / picture, tables)
        parts.append(f"## ({tables[0].number}) {title}\n\n![{title}]({picture})")
        parts += [f"### {made.world}\n\n{made.markdown()}" for made in tables]
    (folder / PAGE).write_text("\n\n".join(parts) + "\n")


def _preface(results: Results, about: Mapping[str, object]) -> list[str]:
    return [
        "Written by `python -m benchmarks.quality`; how it is measured and what the columns mean is in "
        "[docs/benchmarks.md](../benchmarks.md#quality). Figures are means over seeds, with the standard "
        f"deviation between seeds where there are several; every run is in [{FILE}]({FILE}).",
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
        "\n".join(f"- {world}: {_runs(world, results)}" for world in results.worlds()),
    ]


def _runs(world: str, results: Results) -> str:
    """Seeds, dates and protocol of a world's runs."""
    records = [record for record in results.records if record.world == world]
    seeds = ", ".join(map(str, results.seeds(world)))
    dates = ", ".join(sorted({record.date for record in records}))
    return f"seeds {seeds}; {dates}; " + "; ".join(sorted({record.run for record in records}))
