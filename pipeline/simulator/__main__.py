"""``python -m pipeline.simulator``: write a world to Parquet, draw its picture, or measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from pipeline.simulator.config import WorldConfig
from pipeline.simulator.files import write_parquet
from pipeline.simulator.world import World


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for events, items, users and truth.")] = None,
    num_events: Annotated[int, typer.Option(min=1, help="Events to write to --out.")] = 1_000_000,
    config: Annotated[Path | None, typer.Option(help="YAML file with fields of WorldConfig.")] = None,
    picture: Annotated[bool, typer.Option("--picture", help="Draw docs/images/simulator.png.")] = False,
    evidence: Annotated[bool, typer.Option("--evidence", help="Measure dot products (minutes).")] = False,
) -> None:
    """A drifting world whose truth is known."""
    if not (out or picture or evidence):
        raise typer.BadParameter("nothing to do: give --out, --picture or --evidence")
    world = WorldConfig.model_validate(yaml.safe_load(config.read_text()) or {}) if config else WorldConfig()
    if out:
        write_parquet(World(world), num_events, out)
    if picture:
        from pipeline.simulator.picture import draw

        draw(Path("docs/images/simulator.png"), world)
    if evidence:
        # PyTorch is loaded only here: the rest of the simulator starts in a blink without it.
        from pipeline.simulator.evidence import recalls

        for name, recall in recalls(world).items():
            typer.echo(f"{recall:6.3f}  {name}")


if __name__ == "__main__":
    typer.run(main)
