"""``hsnn versions|promote|rollback|pin|unpin|prune``: the registered versions, and what an operator does with
them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli_options import AsJson, ConfigFile, Home, print_json, settings_of, show_report

Number = Annotated[int, typer.Argument(min=1, help="Number of a version, as `hsnn versions` shows it")]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the registry")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing")]


def add_version_verbs(app: typer.Typer) -> None:
    """The verbs stand at the top level, as those of MLflow's own words do."""
    for verb in (versions, promote, rollback, pin, unpin, prune):
        app.command()(verb)


def versions(
    limit: Annotated[int, typer.Option(min=1, help="Newest versions shown")] = 20,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The registered versions, newest first: aliases, pins, data, recall, what the gate said, size."""
    from pipeline.version_tables import listed, print_listed

    show_report(listed(settings_of(config, home), limit), as_json, print_listed)


def promote(
    number: Number,
    reason: Reason = "promoted by hand",
    dry_run: DryRun = False,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make a version @champion, whatever the gate said; the champion so far becomes @previous."""
    from pipeline.version_acts import promoted

    _tell(promoted(settings_of(config, home), number, reason, dry_run), as_json)


def rollback(
    to: Annotated[int | None, typer.Option(min=1, help="Version to go back to [default: @previous]")] = None,
    reason: Reason = "rolled back by hand",
    dry_run: DryRun = False,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make @previous, or any other version, @champion again; the one that served is marked as rolled back."""
    from pipeline.version_acts import rolled_back

    _tell(rolled_back(settings_of(config, home), to, reason, dry_run), as_json)


def pin(
    number: Number, reason: Reason = "pinned by hand", config: ConfigFile = None, home: Home = None
) -> None:
    """Keep a version, however old it becomes."""
    from pipeline.version_acts import registry_of

    registry_of(settings_of(config, home)).pin(number, reason)
    typer.echo(f"version {number} stays until it is unpinned")


def unpin(number: Number, config: ConfigFile = None, home: Home = None) -> None:
    """Let a pinned version be pruned when its time comes."""
    from pipeline.version_acts import registry_of

    registry_of(settings_of(config, home)).unpin(number)
    typer.echo(f"version {number} is pruned like any other")


def prune(
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Newest versions kept [default: as configured]")
    ] = None,
    keep_daily: Annotated[
        int | None,
        typer.Option(min=0, help="Days of which the last version is kept [default: as configured]"),
    ] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Remove old versions with all their bytes; never one with an alias or a pin, nor what another needs."""
    from pipeline.version_acts import pruned
    from pipeline.version_tables import print_pruned

    report = pruned(settings_of(config, home), keep_last, keep_daily, dry_run, quiet=as_json)
    show_report(report, as_json, print_pruned)


def _tell(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        typer.echo(report["said"])
