"""The soak reads its own arguments, and keeps a daemon's defaults but for cadence and retention."""

from __future__ import annotations

from pathlib import Path

from benchmarks import soak


def test_the_soaked_daemon_publishes_and_keeps_little(tmp_path: Path) -> None:
    arguments = soak._parser().parse_args(["--publish-s", "7", "--nodes", "16"])
    settings = soak._settings(arguments, tmp_path, "localhost:1")
    assert settings.cadence.publish_every_s == 7.0
    assert settings.retention.keep_last == 3
    assert settings.trainer.model.codebook.nodes == (16,)
    assert settings.deltas.target is None
