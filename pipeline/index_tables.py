"""What ``hsnn index`` shows on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

_BAR = 24
_MS_PER = {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "s": 1_000}


def print_verified(report: dict[str, Any]) -> None:
    """One line, and one more a problem."""
    problems, console = report["problems"], Console(highlight=False)
    if not problems:
        console.print(
            f"{_title(report)}: {report['items']:,} items, {report['leaves']:,} leaves: "
            "every invariant holds",
            soft_wrap=True,
        )
        return
    count = f"{len(problems)} invariants do" if len(problems) > 1 else "1 invariant does"
    console.print(f"{_title(report)}: {count} not hold", soft_wrap=True)
    for problem in problems:
        text = f"{problem['found']}; {problem['meaning']}"
        console.print(f"[bold red]{escape(problem['invariant'])}:[/] {escape(text)}", soft_wrap=True)


def print_statistics(report: dict[str, Any]) -> None:
    """The index as a whole, its levels, its largest leaves."""
    console = Console()
    _print_facts(console, _title(report), _whole(report))
    console.print(_level_table(report["levels"]))
    if report["largest_leaves"]:
        table = _table("Largest leaves", [("leaf", False), ("items", True), ("most popular", False)])
        for leaf in report["largest_leaves"]:
            table.add_row(leaf["node"], f"{leaf['items']:,}", escape(", ".join(map(str, leaf["sample"]))))
        console.print(table)


def print_item(report: dict[str, Any]) -> None:
    """An item's way down, and what is beside it."""
    console = Console()
    facts = [
        ("popularity", _share(report["popularity"])),
        ("events", f"{report['events']:,}"),
        ("first met", f"{_duration(report['age_ms'])} before the watermark"),
        ("last met", f"{_duration(report['idle_ms'])} before the watermark"),
        ("nearest leaf now", report["nearest"] or "none yet"),
    ]
    _print_facts(console, f"item {report['item']}, {_title(report)}", facts)
    table = _table("Path", [("level", True), ("node", False), ("items", True), ("similarity", True)])
    for level, step in enumerate(report["path"], 1):
        table.add_row(str(level), step["node"], f"{step['items']:,}", f"{step['similarity']:.3f}")
    if report["path"]:
        console.print(table)
        console.print(_member_table("Most similar in its leaf", report["neighbours"]))
    else:
        console.print("It is in no leaf yet: searches find it by scoring all items.")


def print_node(report: dict[str, Any]) -> None:
    """A node's children, or a leaf's members."""
    console = Console()
    facts = [("items", f"{report['items']:,}"), ("popularity", _share(report["popularity"]))]
    _print_facts(console, f"node {report['node']}, {_title(report)}", facts)
    if report["children"]:
        table = _table("Children", [("node", False), ("items", True), ("popularity", True)])
        for child in report["children"]:
            table.add_row(child["node"], f"{child['items']:,}", _share(child["popularity"]))
        console.print(table)
    if report["members"]:
        console.print(_member_table("Members", report["members"]))


def print_tree(report: dict[str, Any]) -> None:
    """The largest nodes with bars, level below level."""
    ready = "" if report["is_ready"] else "; it is not filled yet, and every search scores all items"
    tree = Tree(f"{_title(report)}: {report['items']:,} items{ready}")
    _grow(tree, report)
    Console(highlight=False).print(tree)


def _grow(tree: Tree, node: dict[str, Any]) -> None:
    """A bar is as long as the node is large beside its largest sibling."""
    branches = node["branches"]
    largest = max((branch["items"] for branch in branches), default=1)
    width = max((len(branch["node"]) for branch in branches), default=0)
    for branch in branches:
        bar = "█" * max(1, round(_BAR * branch["items"] / largest))
        name = f"{branch['node']:>{width}} {bar:<{_BAR}}"
        _grow(tree.add(f"{name} {branch['items']:,} items, popularity {branch['popularity']:.1%}"), branch)
    if node["others"]:
        tree.add(f"{node['others']:,} smaller")


def _whole(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("step", f"{report['step']:,}"),
        ("watermark", _instant(report["watermark_ms"])),
        ("epoch", f"{report['epoch']:,}"),
        ("codebook version", f"{report['codebook_version']:,}"),
        ("items", f"{report['items']:,}, {report['placed_items']:,} in leaves"),
        ("searches", "through the index" if report["is_ready"] else "score all items"),
        ("in their nearest leaf", _percent(report["nearest_share"])),
        ("by vectors made now", _percent(report["nearest_share_embedded_now"])),
        ("never met by an event", f"{report['items_never_met']:,}"),
        ("memory", f"{_mib(report['bytes_fp32'])} fp32, {_mib(report['bytes_int8'])} int8"),
    ]


def _level_table(levels: list[dict[str, Any]]) -> Table:
    """Levels side by side: there are three at most, and more figures than fit beside each other."""
    count, ratio = _whole_number, _three_digits
    rows: dict[str, tuple[str, Callable[[Any], str]]] = {
        "nodes": ("nodes", count),
        "used": ("nodes_used", count),
        "largest": ("largest", count),
        "max / mean": ("max_over_mean", ratio),
        "std / mean": ("std_over_mean", ratio),
        "entropy, 1 is even": ("entropy_ratio", ratio),
        "item to centre": ("item_to_centre", ratio),
        "centre to nearest centre": ("centre_to_centre", ratio),
    }
    table = _table("Levels", [("", False), *((f"level {n}", True) for n in range(1, len(levels) + 1))])
    for title, (name, form) in rows.items():
        table.add_row(title, *(form(level[name]) for level in levels))
    return table


def _member_table(title: str, members: list[dict[str, Any]]) -> Table:
    columns = ["popularity", "events", "first met", "last met", "similarity"]
    table = _table(title, [("item", False), *((name, True) for name in columns)])
    for member in members:
        table.add_row(
            escape(str(member["item"])),
            _share(member["popularity"]),
            f"{member['events']:,}",
            _duration(member["age_ms"]),
            _duration(member["idle_ms"]),
            f"{member['similarity']:.3f}",
        )
    return table


def _table(title: str, columns: Iterable[tuple[str, bool]]) -> Table:
    """Columns by title; numbers stand on the right."""
    table = Table(title=title)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left")
    return table


def _print_facts(console: Console, title: str, facts: list[tuple[str, str]]) -> None:
    """The title is a line of its own: above a narrow table it would be wrapped."""
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def _title(report: dict[str, Any]) -> str:
    version = f"version {report['version']}, " if report["version"] else ""
    return version + str(report["checkpoint"])


def _share(popularity: float) -> str:
    return f"{popularity:.3%}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _whole_number(value: int) -> str:
    return f"{value:,}"


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _instant(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms else "no event yet"


def _duration(ms: int) -> str:
    """In the largest unit that it fills once: ``3.4 h``."""
    for unit, length in _MS_PER.items():
        if ms >= length:
            return f"{ms / length:.1f} {unit}"
    return f"{ms} ms"
