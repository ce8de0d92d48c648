"""``hsnn archive``: Kafka to Parquet exactly once, and the care of what was written."""

from __future__ import annotations

from typing import Annotated

import typer

from consumers.errors import ConfigError
from pipeline.cli_options import AsJson, ConfigFile, Servers, show_report

archive_app = typer.Typer()

Place = Annotated[str, typer.Argument(help="Root of the archive: a folder or s3://bucket/prefix")]


@archive_app.callback(invoke_without_command=True)
def archive(
    context: typer.Context,
    to: Annotated[
        str | None, typer.Option(help="Root of the archive: a folder or s3://bucket/prefix")
    ] = None,
    topics: Annotated[
        list[str] | None, typer.Option(help="Topic to archive; may be given several times [default: all]")
    ] = None,
    stop_at_end: Annotated[bool, typer.Option(help="Leave at the end that the topics have now")] = False,
    accept_gap: Annotated[
        bool, typer.Option(help="Go on where Kafka dropped records that are not archived yet")
    ] = False,
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Archive the event, item and user topics until SIGTERM or Ctrl-C.

    Goes on behind the archive's last commits. Several archivers share the partitions.
    """
    if context.invoked_subcommand is not None:
        return
    if to is None:
        raise ConfigError("name the archive's root with --to")
    from pipeline.archiving import load_archive_settings, print_archived, run_archive

    settings = load_archive_settings(config, bootstrap_servers)
    report = run_archive(settings, to, topics, stop_at_end=stop_at_end, accept_gap=accept_gap, quiet=as_json)
    show_report(report, as_json, print_archived)


@archive_app.command("verify")
def archive_verify(
    path: Place,
    deep: Annotated[bool, typer.Option(help="Read every byte and compare checksums")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="Compare with the Kafka of the settings")] = False,
    config: ConfigFile = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Compare with the records that these Kafka servers still hold")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove by offset ranges that nothing is missing and nothing there twice; ends with 1 if it is not so."""
    from pipeline.archiving import load_archive_settings, print_verified, verify_archive

    compare = kafka or bootstrap_servers is not None
    servers = load_archive_settings(config, bootstrap_servers).kafka if compare else None
    report = verify_archive(path, servers, deep=deep, quiet=as_json)
    show_report(report, as_json, print_verified)
    if not report["whole"]:
        raise typer.Exit(1)


@archive_app.command("compact")
def archive_compact(
    path: Place,
    older_than: Annotated[
        float, typer.Option(min=0, help="Leave commits of the last so many seconds")
    ] = 3_600,
    target_bytes: Annotated[int, typer.Option(min=1, help="Merge files of an hour up to this size")] = 128
    << 20,
    as_json: AsJson = False,
) -> None:
    """Merge small files of one hour, and consecutive commits."""
    from pipeline.archiving import compact_archive, print_compacted

    report = compact_archive(path, older_than, target_bytes, quiet=as_json)
    show_report(report, as_json, print_compacted)
