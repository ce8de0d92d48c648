"""``hsnn index``: look into the index of a version or a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from consumers.errors import ConfigError
from pipeline.cli_options import AsJson, ConfigFile, Home, settings_of, show_report

index_app = typer.Typer(help="Look into the index of a version or a checkpoint.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        help="Alias or number of a version, a checkpoint directory, or newest: the home's last checkpoint"
    ),
]


@index_app.command("verify")
def index_verify(
    source: Source = "champion", config: ConfigFile = None, home: Home = None, as_json: AsJson = False
) -> None:
    """Check every invariant of an index; ends with 1 and names what is broken if one does not hold."""
    from pipeline.index_tables import print_verified
    from pipeline.inspecting import verified

    report = verified(settings_of(config, home), source)
    show_report(report, as_json, print_verified)
    if report["problems"]:
        raise typer.Exit(1)


@index_app.command("stats")
def index_stats(
    source: Source = "champion", config: ConfigFile = None, home: Home = None, as_json: AsJson = False
) -> None:
    """Balance and similarity level by level, staleness, memory and the largest leaves of an index."""
    from pipeline.index_tables import print_statistics
    from pipeline.inspecting import index_statistics

    show_report(index_statistics(settings_of(config, home), source), as_json, print_statistics)


@index_app.command("show")
def indexshow_report(
    source: Source = "champion",
    item: Annotated[str | None, typer.Option(help="Id of an item: where it is, and beside which")] = None,
    node: Annotated[str | None, typer.Option(help="A node, such as 3/14: what is in it")] = None,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The largest nodes of an index as a tree; or one item's place, or one node's content."""
    from pipeline import index_tables, inspecting

    if item is not None and node is not None:
        raise ConfigError("name --item or --node, not both")
    settings = settings_of(config, home)
    if item is not None:
        show_report(inspecting.item_place(settings, source, item), as_json, index_tables.print_item)
    elif node is not None:
        show_report(inspecting.node_contents(settings, source, node), as_json, index_tables.print_node)
    else:
        show_report(inspecting.largest_nodes(settings, source), as_json, index_tables.print_tree)
