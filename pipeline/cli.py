"""The command line. Exit codes: 0 done, 1 failed, 2 used or configured wrongly."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumers.errors import ConfigError, HsnnError
from pipeline import __version__
from pipeline.cli_archive import archive_app
from pipeline.cli_checkpoint import checkpoint_app
from pipeline.cli_dlq import dlq_app
from pipeline.cli_gate import add_gate_verbs
from pipeline.cli_index import index_app
from pipeline.cli_options import AsJson, ConfigFile, Home, Servers, print_json, settings_of, time_ms
from pipeline.cli_serve import serve
from pipeline.cli_versions import add_version_verbs
from pipeline.logs import set_up_logs

if TYPE_CHECKING:
    from consumers.archive_reader import TimeWindow
    from pipeline.config import Settings
    from pipeline.daemon import Summary

app = typer.Typer(
    name="hsnn",
    help="Keeps a neural retriever learning from Kafka while it serves. Start with `hsnn demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(index_app, name="index")
app.add_typer(archive_app, name="archive")
app.add_typer(dlq_app, name="dlq")
app.add_typer(checkpoint_app, name="checkpoint")
add_version_verbs(app)
add_gate_verbs(app)
app.command()(serve)


def _tell(summary: Summary, as_json: bool) -> None:
    from pipeline.summary import print_summary, summary_json

    if as_json:
        print_json(summary_json(summary))
    else:
        print_summary(summary)


@app.callback()
def _setup(
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error")] = "warning",
    log_format: Annotated[
        str, typer.Option(help="text, or json: one object a line on standard error")
    ] = "text",
) -> None:
    set_up_logs(log_level, log_format)


@app.command()
def demo(
    events: Annotated[
        int | None, typer.Option(min=1, help="Events of the world [default: until Ctrl-C]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A Parquet log instead")
    ] = None,
    broker: Annotated[
        str, typer.Option(help="auto, embedded or kafka (genuine, needs Java and Maven)")
    ] = "auto",
    exit_: Annotated[bool, typer.Option("--exit", help="Leave when all events are trained")] = False,
    rate: Annotated[
        float | None, typer.Option(min=1, help="Events a second [default: as fast as it goes]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world")] = 1,
    ui: Annotated[bool, typer.Option(help="Start the MLflow UI")] = True,
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Broker, drifting world, daemon and MLflow UI on this machine, from nothing.

    Each demo starts anew in HOME/demo. Ctrl-C ends it in seconds, with a checkpoint and a summary.
    """
    if broker not in ("auto", "embedded", "kafka"):
        raise ConfigError(f"--broker: {broker} is not one of auto, embedded, kafka")
    from pipeline.demo import DemoOptions, run_demo
    from pipeline.summary import print_demo

    home = settings_of(config, home).home
    options = DemoOptions(
        home=home,
        events=events,
        data=data,
        broker=broker,  # type: ignore[arg-type]
        exit_when_done=exit_,
        as_json=as_json,
        ui=ui,
        rate=rate,
        seed=seed,
        config=config,
    )
    report = run_demo(options)
    if as_json:
        print_json(report)
    else:
        print_demo(report, home / "demo")


@app.command()
def run(
    config: ConfigFile = None,
    home: Home = None,
    bootstrap_servers: Servers = None,
    fresh: Annotated[bool, typer.Option(help="Start anew instead of from the newest state")] = False,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Go on without events that the broker no longer holds")
    ] = False,
    fill_gap_from: Annotated[
        str | None, typer.Option(help="Archive from which to train first what the broker no longer holds")
    ] = None,
    stop_at_end: Annotated[bool, typer.Option(help="Leave at the end that the topics have now")] = False,
    as_json: AsJson = False,
) -> None:
    """The daemon: train from Kafka until SIGTERM or Ctrl-C.

    It goes on from the newest whole checkpoint, else from the registry's newest version, else from nothing.
    """
    from pipeline.producing import make_dead_letter_topics
    from pipeline.running import live_daemon
    from pipeline.signals import on_signals
    from pipeline.table import LiveTable

    settings = settings_of(config, home, bootstrap_servers=bootstrap_servers)
    make_dead_letter_topics(settings.kafka)
    if accept_gap and fill_gap_from is not None:
        raise ConfigError("name --accept-gap or --fill-gap-from, not both")
    daemon = live_daemon(
        settings,
        fresh=fresh,
        accept_gap=accept_gap,
        fill_gap_from=fill_gap_from,
        stop_at_end=stop_at_end,
    )
    with on_signals(daemon.stop), LiveTable(settings.status_file, None, None, quiet=as_json):
        summary = daemon.run()
    _tell(summary, as_json)


@app.command()
def replay(
    source: Annotated[str, typer.Option("--from", help="Archive or Parquet log: a folder, or s3://...")],
    config: ConfigFile = None,
    home: Home = None,
    from_version: Annotated[
        str | None, typer.Option(help="Go on from a version, by its number or alias")
    ] = None,
    from_checkpoint: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Go on from a checkpoint directory")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from nothing; the default")] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on from the newest checkpoint instead of from nothing")
    ] = False,
    since: Annotated[str | None, typer.Option(help="First event time, ISO 8601 or epoch ms")] = None,
    until: Annotated[str | None, typer.Option(help="Event time to stop before, ISO 8601 or epoch ms")] = None,
    journal: Annotated[
        Path | None, typer.Option(exists=True, help="Journal of a live run, whose exact order is walked")
    ] = None,
    publish: Annotated[
        bool | None, typer.Option(help="Leave a version at the end [default: as configured]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look through the whole log, train nothing")
    ] = False,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Go on behind offsets that the archive lacks")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train from an archive or Parquet with no Kafka at all, and publish a version like any other.

    Without --config, features are inferred from the item and user tables of a Parquet log.
    """
    from consumers.archive_reader import TimeWindow
    from pipeline import replaying

    flags: dict[str, Any] = {"home": str(home)} if home is not None else {}
    window = TimeWindow(time_ms(since, "--since"), time_ms(until, "--until"))
    start = replaying.Start(from_version, from_checkpoint, resume, fresh)
    settings = replaying.replay_settings(source, config, flags)
    if dry_run:
        _check_log(settings, source, window, accept_gap, as_json)
        return
    wanted = replaying.Replay(source, start, window, journal, publish, accept_gap)
    _tell(replaying.run_replay(wanted, settings), as_json)


def _check_log(settings: Settings, source: str, window: TimeWindow, accept_gap: bool, as_json: bool) -> None:
    from pipeline.checking_log import check_log, print_report

    report = check_log(settings, source, window, accept_gap, quiet=as_json)
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def produce(
    source: Annotated[str, typer.Option("--from", help="Archive or Parquet log: a folder, or s3://...")],
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second")] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, help="Times real time, by the events' own clock")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="arrow (fast) or json (one event a message)")
    ] = "arrow",
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of the event topic if it is created")
    ] = 1,
    follow: Annotated[Path | None, typer.Option(help="Status file of the daemon to stay near to")] = None,
    max_lead: Annotated[int, typer.Option(min=1, help="Most events ahead of the daemon followed")] = 100_000,
    rename: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW: another name for a topic of an archive; repeatable")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish an archive to Kafka as it was, or a Parquet log, whose columns the config maps."""
    from pipeline import producing

    if form not in ("arrow", "json"):
        raise ConfigError(f"--format: {form} is not one of arrow, json")
    settings = settings_of(config, None, bootstrap_servers=bootstrap_servers)
    backlog = producing.follow(follow, max_lead) if follow else None
    order = producing.Order(source, form, partitions, rate, speed, tuple(rename or ()))  # type: ignore[arg-type]
    producing.publish(settings, order, backlog, as_json)


@app.command()
def simulate(
    out: Annotated[Path | None, typer.Option(help="Write Parquet to this folder")] = None,
    kafka: Annotated[bool, typer.Option("--kafka", help="Stream to Kafka instead")] = False,
    events: Annotated[int, typer.Option(min=1, help="Events")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world")] = 1,
    world: Annotated[
        Path | None, typer.Option(exists=True, help="YAML file with settings of the world")
    ] = None,
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second")] = None,
    follow: Annotated[Path | None, typer.Option(help="Status file of the daemon to stay near to")] = None,
    max_lead: Annotated[int, typer.Option(min=1, help="Most events ahead of the daemon followed")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """A drifting world whose truth is known, to Parquet or to Kafka (docs/simulator.md)."""
    from pipeline.simulating import stream_world, write_world

    if (out is None) == (not kafka):
        raise ConfigError("name one target: --out DIR or --kafka")
    if out is not None:
        write_world(out, events, seed, world)
        if as_json:
            print_json({"produced": events, "total": events})
        return
    settings = settings_of(config, None, bootstrap_servers=bootstrap_servers)
    backlog = (follow, max_lead) if follow else None
    stream_world(settings, events, seed, world, rate, backlog, as_json)


@app.command()
def query(
    user: Annotated[list[str], typer.Option(help="User id; may be given several times")],
    k: Annotated[int, typer.Option("-k", min=1, help="Items a user")] = 10,
    version: Annotated[str, typer.Option(help="Alias or number of the version")] = "champion",
    config: ConfigFile = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Top items for users, answered by a registered version."""
    from pipeline.querying import answer, print_answers

    answers = answer(settings_of(config, home), user, k, version)
    if as_json:
        print_json(answers)
    else:
        print_answers(answers)


@app.command()
def status(config: ConfigFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """What the daemon of this home is doing, from its status file."""
    from pipeline.status import read_status
    from pipeline.table import status_rows

    found = read_status(settings_of(config, home).status_file)
    if as_json:
        print_json(found)
        return
    table = Table(title="running" if found["running"] else "stopped", show_header=False)
    written = datetime.fromtimestamp(found["at_ms"] / 1000, UTC).isoformat(timespec="seconds")
    for name, value in [("as of", written), *status_rows(found)]:
        table.add_row(name, value)
    Console().print(table)


@app.command()
def doctor(
    config: ConfigFile = None, home: Home = None, bootstrap_servers: Servers = None, as_json: AsJson = False
) -> None:
    """Say in plain words what is wrong with broker, topics, registry and disk."""
    from pipeline.doctor import Status, diagnose, render
    from pipeline.doctoring import doctor_config

    checks = diagnose(doctor_config(settings_of(config, home, bootstrap_servers=bootstrap_servers)))
    if as_json:
        print_json([{**vars_of(check), "status": check.status.value} for check in checks])
    else:
        Console().print(render(checks))
    if any(check.status is Status.FAIL for check in checks):
        raise typer.Exit(1)


def vars_of(check: Any) -> dict[str, Any]:
    """A check as plain data."""
    return {name: getattr(check, name) for name in ("name", "status", "finding", "remedy")}


@config_app.command("show")
def config_show(config: ConfigFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """The merged configuration (flags over environment over file over defaults), secrets masked."""
    import yaml

    masked = settings_of(config, home).masked()
    if as_json:
        print_json(masked)
    else:
        typer.echo(yaml.safe_dump(masked, sort_keys=False), nl=False)


@config_app.command("infer")
def config_infer(
    source: Annotated[
        Path, typer.Option("--from", exists=True, file_okay=False, help="Folder of a Parquet log")
    ],
) -> None:
    """Propose a configuration for a Parquet log: which columns are features, of what kind."""
    import yaml

    from pipeline.infer import infer_settings

    typer.echo(yaml.safe_dump(infer_settings(source), sort_keys=False), nl=False)


@app.command()
def version() -> None:
    """The version of this program."""
    typer.echo(__version__)


def main() -> None:
    """Entry point: errors raised on purpose are one line, without a traceback."""
    try:
        app()
    except ConfigError as error:
        _print_error("configuration", error)
        sys.exit(2)
    except HsnnError as error:
        _print_error(type(error).__name__, error)
        sys.exit(1)


def _print_error(kind: str, error: HsnnError) -> None:
    """On stderr, unwrapped and word for word: brackets in a message are not markup."""
    Console(stderr=True).print(f"[bold red]{kind}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
