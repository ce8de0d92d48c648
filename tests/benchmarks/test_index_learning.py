from __future__ import annotations

import pytest

from benchmarks.index_learning import CODEBOOK, Life, main, modes
from benchmarks.quality_worlds import SimulatedWorld
from benchmarks.settings import changed

SMALL = {"start_after_steps": 4, "start_after_items": 2, "nodes": (8,)}


def test_every_mode_is_a_setting_that_the_learner_takes() -> None:
    world = SimulatedWorld(100, 1_000)
    named = {
        name: changed(world.learner(0), {CODEBOOK + key: value for key, value in settings.items()})
        for name, settings in modes().items()
    }
    codebooks = {name: config.trainer.model.codebook for name, config in named.items()}
    assert codebooks["joint soft gradient kl"] == world.learner(0).trainer.model.codebook
    assert len({str(codebook) for codebook in codebooks.values()}) == len(modes())


def test_a_life_answers_before_it_learns_and_counts_its_second_half() -> None:
    figures = Life(SimulatedWorld(400, 12_288), 0, SMALL).run()
    assert 0 < figures["recall"] <= 1
    assert figures["over flat"] == pytest.approx(figures["recall"] / figures["flat"], rel=1e-6)
    assert 0 < figures["scored"] < 1
    assert figures["max/mean"] >= 1
    assert figures["moves an item, 100k events"] > 0


def test_a_table_has_a_row_for_each_mode_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            *("--items", "300", "--events", "8192", "--seeds", "1", "--modes", "em soft", "separate soft"),
            *("--set", "start_after_steps=4", "start_after_items=2", "recluster_every_steps=4"),
        ]
    )
    said = capsys.readouterr().out
    table = said[said.index("means over") :]
    assert "em soft" in table
    assert "separate soft" in table
    assert "joint" not in table
