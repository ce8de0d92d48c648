"""``hsnn gate|compare``: versions judged, or laid side by side, on the events of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumers.errors import ConfigError
from pipeline.cli_options import AsJson, ConfigFile, Home, settings_of, show_report, time_ms

if TYPE_CHECKING:
    from consumers.archive_reader import TimeWindow
    from pipeline.config import Settings

REFUSED = 3
"""Exit code of a gate that did not promote."""

Since = Annotated[
    str | None,
    typer.Option(help="First event time, ISO 8601 or epoch ms [default: behind what both versions learnt]"),
]
Until = Annotated[str | None, typer.Option(help="Event time to stop before, ISO 8601 or epoch ms")]


def add_gate_verbs(app: typer.Typer) -> None:
    """Beside the verbs that move aliases by hand."""
    for verb in (gate, compare):
        app.command()(verb)


def gate(
    source: Annotated[str, typer.Option("--from", help="Archive or Parquet log: a folder, or s3://...")],
    version: Annotated[str, typer.Option(help="Number or alias of the version to judge")] = "challenger",
    against: Annotated[
        str, typer.Option(help="Number or alias to compare with; another than champion needs --dry-run")
    ] = "champion",
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the verdict, and change nothing")] = False,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Judge a version on events that it has not learnt, and promote it if it passes; else end with 3."""
    from pipeline.gate_tables import print_verdict
    from pipeline.judging import judged

    if against != "champion" and not dry_run:
        raise ConfigError(
            "--against: only a comparison with champion decides who becomes champion; add --dry-run"
        )
    window = _window(since, until)
    settings = _settings(source, config, home)
    report = judged(settings, version, against, (source, window), dry_run=dry_run, quiet=as_json)
    show_report(report, as_json, print_verdict)
    if report["result"] != "promoted":
        raise typer.Exit(REFUSED)


def compare(
    one: Annotated[str, typer.Argument(help="Number or alias of a version")],
    other: Annotated[str, typer.Argument(help="Number or alias of the version to compare it with")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="Log whose events both answer [default: their recorded figures]"),
    ] = None,
    since: Since = None,
    until: Until = None,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Two versions on the same events: recall, clicks, balance, what moved; or their recorded figures."""
    from pipeline.gate_tables import print_compared, print_recorded
    from pipeline.judging import compared_on, recorded

    if source is None:
        if since is not None or until is not None:
            raise ConfigError("--since and --until are about a log: name one with --from")
        show_report(recorded(settings_of(config, home), one, other), as_json, print_recorded)
        return
    window = _window(since, until)
    settings = _settings(source, config, home)
    show_report(compared_on(settings, one, other, (source, window), quiet=as_json), as_json, print_compared)


def _window(since: str | None, until: str | None) -> TimeWindow:
    from consumers.archive_reader import TimeWindow

    return TimeWindow(time_ms(since, "--since"), time_ms(until, "--until"))


def _settings(source: str, config: Path | None, home: Path | None) -> Settings:
    if "://" not in source and not Path(source).is_dir():
        raise ConfigError(f"--from: {source} is not a folder")
    flags: dict[str, Any] = {"home": str(home)} if home is not None else {}
    from pipeline.config import load_settings

    return load_settings(config, flags)
