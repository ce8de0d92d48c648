"""``hsnn serve``: a registered version over HTTP, and what follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consumers.errors import ConfigError
from pipeline.cli_options import ConfigFile, Home


def serve(
    config: ConfigFile = None,
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: serve.host]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port; 0 picks a free one [default: serve.port]")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to follow [default: serve.alias]")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Serve this version, and stay with it")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="Alias that answers a sample too, to be compared")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Serve a checkpoint directory, without a registry"),
    ] = None,
) -> None:
    """Answer `POST /v1/retrieve` from the champion, and go over to what follows it.

    Ends in order at SIGTERM or Ctrl-C: requests in hand are answered first.
    """
    from pipeline.config import load_settings
    from pipeline.serving import run_server

    sources = {"--alias": alias, "--version": version, "--checkpoint": checkpoint}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"name one of {', '.join(given)}")
    if checkpoint is not None and shadow is not None:
        raise ConfigError("--shadow compares registered versions; leave out --checkpoint")
    own: dict[str, Any] = {"host": host, "port": port, "alias": alias}
    own = {name: value for name, value in own.items() if value is not None}
    if shadow is not None:
        own["shadow"] = {"alias": shadow}
    flags: dict[str, Any] = {"serve": own} if home is None else {"serve": own, "home": str(home)}
    run_server(load_settings(config, flags), version, checkpoint)
