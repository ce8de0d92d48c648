"""``hsnn checkpoint``: look at the states on disk, check them, and keep one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import AsJson, ConfigFile, Home, settings_of, show_report

checkpoint_app = typer.Typer(
    help="Look at the states on disk, check them, and keep one.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Name of a checkpoint, as `hsnn checkpoint list` shows it")]


@checkpoint_app.command("list")
def checkpoint_list(config: ConfigFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """The checkpoints of the home, oldest first: of when, how many events, how large, pinned or not."""
    from pipeline.checkpoints import listed, print_listed

    show_report(listed(settings_of(config, home)), as_json, print_listed)


@checkpoint_app.command("verify")
def checkpoint_verify(
    path: Annotated[
        Path | None, typer.Argument(help="A checkpoint directory [default: all of the home]")
    ] = None,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read checkpoints whole and compare every checksum; ends with 1 and names what is damaged."""
    from pipeline.checkpoints import print_verified, verified

    report = verified(settings_of(config, home), path)
    show_report(report, as_json, print_verified)
    if any(problem for problem in report["checkpoints"].values()):
        raise typer.Exit(1)


@checkpoint_app.command("pin")
def checkpoint_pin(name: Name, config: ConfigFile = None, home: Home = None) -> None:
    """Keep a checkpoint, however old it becomes."""
    from trainers.retention import pin

    pin(settings_of(config, home).checkpoints, name)
    typer.echo(f"{name} stays until it is unpinned")


@checkpoint_app.command("unpin")
def checkpoint_unpin(name: Name, config: ConfigFile = None, home: Home = None) -> None:
    """Let a pinned checkpoint be removed when its time comes."""
    from trainers.retention import unpin

    unpin(settings_of(config, home).checkpoints, name)
    typer.echo(f"{name} is pruned like any other")
