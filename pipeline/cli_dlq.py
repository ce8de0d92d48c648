"""``hsnn dlq``: look at what was left out, and send it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.cli_options import AsJson, ConfigFile, Servers, print_json, settings_of, show_report, time_ms

dlq_app = typer.Typer(help="Look at dead letters, and send them again.", no_args_is_help=True)

Topic = Annotated[str | None, typer.Option(help="Original topic; all that are read if left out")]
Reason = Annotated[str | None, typer.Option(help="Reason, such as not_json")]
Since = Annotated[str | None, typer.Option(help="Left out at this time or later, ISO 8601 or epoch ms")]
Until = Annotated[str | None, typer.Option(help="Left out before this time, ISO 8601 or epoch ms")]
LettersFile = Annotated[
    Path | None,
    typer.Option("--file", exists=True, dir_okay=False, help="A dead-letters.jsonl instead of Kafka"),
]


@dlq_app.command("list")
def dlq_list(
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=0, help="Newest letters shown")] = 20,
    file: LettersFile = None,
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """How many messages were left out for which reason, and the newest of them."""
    from pipeline.dead_letter_tables import print_overview
    from pipeline.dead_letters import Chosen, Graveyard, overview, place_of

    settings = settings_of(config, bootstrap_servers=bootstrap_servers)
    chosen = Chosen(topic, reason, time_ms(since, "--since"))
    found = overview(Graveyard(place_of(settings.kafka, topic, file), chosen), limit)
    show_report(found, as_json, print_overview)


@dlq_app.command("show")
def dlq_show(
    message: Annotated[str, typer.Argument(help="TOPIC:PARTITION:OFFSET of the message, as list shows it")],
    file: LettersFile = None,
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """One message that was left out: why, its headers, and its original content."""
    from pipeline.dead_letter_tables import print_contents
    from pipeline.dead_letters import Chosen, Graveyard, contents, place_of, topic_in

    settings = settings_of(config, bootstrap_servers=bootstrap_servers)
    topic = topic_in(message)
    found = contents(Graveyard(place_of(settings.kafka, topic, file), Chosen(topic)), message)
    if as_json:
        print_json(found)
    else:
        print_contents(found)


@dlq_app.command("replay")
def dlq_replay(
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most messages sent, oldest first")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent")] = False,
    to: Annotated[str | None, typer.Option(help="Topic to send to; each to its own if left out")] = None,
    max_returns: Annotated[
        int, typer.Option(min=1, help="Leave alone what was replayed so often and came back")
    ] = 3,
    file: LettersFile = None,
    config: ConfigFile = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Send the original bytes of dead letters to their topics again, each once. Order is lost."""
    from pipeline import dead_letters
    from pipeline.dead_letter_tables import print_report

    dead_letters.check_target(file, to)
    settings = settings_of(config, bootstrap_servers=bootstrap_servers)
    chosen = dead_letters.Chosen(topic, reason, time_ms(since, "--since"), time_ms(until, "--until"))
    graveyard = dead_letters.Graveyard(dead_letters.place_of(settings.kafka, topic, file), chosen)
    replayer = dead_letters.Replayer(settings.kafka, to, max_returns, dry_run)
    console = Console(stderr=True)
    console.print(f"[yellow]{dead_letters.ORDER_IS_LOST}[/]", highlight=False)
    with console.status("replaying ...") as progress:
        report = replayer.replay(graveyard, limit, lambda sent: progress.update(f"replayed {sent:,} ..."))
    show_report(report.as_json(), as_json, print_report)
