"""``hsnn index``: what it says of a checkpoint and of a version, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lives import newest, settings_file, write_log

from consumers.errors import DataError
from deploy.retriever import Retriever
from index_refresh.inspection import Inspector
from index_refresh.learner import Learner
from index_refresh.refresher import Refresher
from index_refresh.statistics import statistics
from index_refresh.tree import nodes_of_level, path_of
from pipeline import cli, index_tables
from pipeline.config import PREFIX, WELL_KNOWN
from pipeline.inspecting import MEMBERS
from pipeline.replaying import replay_log
from tests.worlds import TinyWorld
from trainers.checkpoint import Checkpoint, write_checkpoint
from trainers.entities import SEEN

NODES = (4, 3)
NUM_ITEMS = 120


@dataclass
class Outcome:
    """How the program ended, and what it said where."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, self.err
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Without the lines of tables, and in one line."""
        return " ".join(self.out.translate(str.maketrans("│┃━─┏┓┗┛┡┩└┘┌┐├┤┬┴┼╇┳┻", " " * 22)).split())


Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, _empty_mlflow_store: Path) -> Path:
    """A log trained by the program itself: one checkpoint, and version 1, which is the champion."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "home").mkdir()
    shutil.copy(_empty_mlflow_store, folder / "home" / "mlflow.db")
    model = {"dim": 8, "codebook": {"nodes": list(NODES), "start_after_steps": 4, "anneal_steps": 10}}
    config = settings_file(
        folder / "hsnn.yaml",
        folder / "home",
        trainer={"model": model},
        cadence={"publish_at_end": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in (*WELL_KNOWN, *(name for name in os.environ if name.startswith(PREFIX))):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        summary = replay_log(write_log(folder / "log", 1_000), config, {}, (None, None), resume=False)
    assert summary.versions == [1]
    return folder / "home"


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``hsnn index ...`` in this process, of the trained home unless another is named."""
    for name in (*WELL_KNOWN, *(name for name in os.environ if name.startswith(PREFIX))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> Outcome:
        own_home = [] if "--home" in arguments else ["--home", str(home)]
        monkeypatch.setattr(sys, "argv", ["hsnn", "index", *map(str, arguments), *own_home])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return Outcome(int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def trained(home: Path) -> Learner:
    return Learner.restore(newest(home))


def damaged(checkpoint: Checkpoint, root: Path) -> Path:
    """The same state with one item listed twice and a size that agrees, in files that are whole."""
    parts = {part: dict(tensors) for part, tensors in checkpoint.parts.items()}
    rows = parts["index"]["rows"].clone()
    rows[0] = rows[1]
    parts["index"]["rows"] = rows
    manifest = replace(checkpoint.manifest, files={})
    return write_checkpoint(root, "damaged", parts, checkpoint.tables, manifest)


# -- verify ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [(), ("champion",), ("1",), ("newest",)], ids=str)
def test_an_intact_index_verifies_whatever_names_it(source: tuple[str, ...], call: Call) -> None:
    outcome = call("verify", *source)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f": {NUM_ITEMS} items, 12 leaves: every invariant holds\n")
    assert ("version 1, " in outcome.out) == (source != ("newest",))


def test_a_checkpoint_is_named_by_its_directory(call: Call, home: Path) -> None:
    path = newest(home).path
    report = call("verify", path, "--json").json
    assert report == {
        "version": None,
        "checkpoint": path.name,
        "items": NUM_ITEMS,
        "leaves": 12,
        "problems": [],
    }


def test_a_broken_index_ends_with_1_and_its_problems(call: Call, home: Path, tmp_path: Path) -> None:
    path = damaged(newest(home), tmp_path)
    plain, as_json = call("verify", path), call("verify", path, "--json")
    assert (plain.code, as_json.code) == (1, 1)
    assert plain.out.startswith("damaged: 2 invariants do not hold\n")
    twice, lost = as_json.json["problems"]
    assert (twice["invariant"], lost["invariant"]) == (
        "every row is listed once",
        "every live item is listed",
    )
    for problem in (twice, lost):
        assert f"{problem['invariant']}: {problem['found']}; {problem['meaning']}\n" in plain.out


def test_a_damaged_file_is_named(call: Call, home: Path, tmp_path: Path) -> None:
    path = damaged(newest(home), tmp_path)
    file = path / "index.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    outcome = call("verify", path)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"CheckpointError: {file}: was altered")


# -- sources that are not there ------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["verify", "stats", "show"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (["7"], "RegistryError: "),
        (["nobody"], "RegistryError: "),
        (["no/such/folder"], "CheckpointError: no/such/folder/manifest.json"),
        (["newest", "--home", "elsewhere"], "StateError: elsewhere/checkpoints: holds no checkpoint"),
    ],
)
def test_a_source_that_is_not_there_ends_with_1_and_one_line(
    verb: str, source: list[str], says: str, call: Call
) -> None:
    outcome = call(verb, *source)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(says)
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--item", "nobody"], 1, "DataError: item nobody: is not in this index"),
        (["--item", "-5"], 1, "DataError: item -5: is not in this index"),
        (["--item", "9" * 30], 1, f"DataError: item {'9' * 30}: is not in this index"),
        (["--node", "4"], 1, "DataError: node 4: is not in this index; nodes are numbered 0 to 3 and 0 to 2"),
        (["--node", "0/1/2"], 1, "DataError: node 0/1/2: is not in this index"),
        (["--node", "0/"], 2, "configuration: --node: 0/ is no node; write a number a level"),
        (["--node", "-1"], 2, "configuration: --node: -1 is no node"),
        (["--node", "1", "--item", "2"], 2, "configuration: name --item or --node, not both"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    arguments: list[str], code: int, says: str, call: Call
) -> None:
    outcome = call("show", "newest", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(says)
    assert outcome.err.count("\n") == 1


# -- stats ---------------------------------------------------------------------------------------------------


def test_stats_tell_of_the_state_that_was_saved(call: Call, home: Path, trained: Learner) -> None:
    report, manifest = call("stats", "--json").json, newest(home).manifest
    assert report["version"] == "1"
    assert (report["step"], report["epoch"]) == (manifest.step, manifest.index_epoch)
    assert report["watermark_ms"] == manifest.watermark_ms
    assert (report["items"], report["placed_items"], report["is_ready"]) == (NUM_ITEMS, NUM_ITEMS, True)
    seen = trained.trainer.items.rows[SEEN][trained.trainer.items.live_rows()]
    assert report["items_never_met"] == int((seen == 0).sum())
    assert report["bytes_int8"] < report["bytes_fp32"] == trained.refresher.snapshot("").nbytes
    first, second = report["levels"]
    assert (first["nodes"], second["nodes"]) == (4, 12)
    assert (first["nodes_used"], second["nodes_used"]) == (
        manifest.metrics["index_nodes_used"],
        manifest.metrics["index_level2_nodes_used"],
    )
    assert first["max_over_mean"] == pytest.approx(manifest.metrics["index_max_over_mean"])
    assert second["centre_to_centre"] == manifest.metrics["index_level2_centre_to_centre"]
    assert first["item_to_centre"] < second["item_to_centre"] <= 1.0


def test_the_largest_leaves_name_their_most_popular_items(call: Call, trained: Learner) -> None:
    leaves = call("stats", "--json").json["largest_leaves"]
    used = sorted((size for size in trained.refresher.leaves.sizes.tolist() if size), reverse=True)
    assert [leaf["items"] for leaf in leaves] == used[:5]
    for leaf in leaves:
        members = call("show", "--node", leaf["node"], "--json").json["members"]
        assert leaf["sample"] == [member["item"] for member in members[:3]]


def test_stats_are_shown_as_tables(call: Call) -> None:
    report, shown = call("stats", "--json").json, call("stats").words
    for said in ("version 1, step-", "through the index", "level 1 level 2", "nodes 4 12", "Largest leaves"):
        assert said in shown
    assert f"in their nearest leaf {report['nearest_share']:.1%}" in shown
    assert f"entropy, 1 is even {report['levels'][0]['entropy_ratio']:.3f}" in shown


def test_items_that_were_moved_away_are_not_in_their_nearest_leaf(home: Path) -> None:
    learner = Learner.restore(newest(home))
    rows = learner.trainer.items.live_rows()
    learner.refresher.reassign(rows, hysteresis=0.0)
    assert statistics(learner).nearest_share == 1.0
    moved = rows[:30]
    learner.refresher.leaves.move(moved, (learner.refresher.leaves.codes[moved].astype(np.int64) + 1) % 12)
    assert statistics(learner).nearest_share == pytest.approx(1 - 30 / NUM_ITEMS)


def test_vectors_that_are_out_of_date_show_by_embedding_anew(home: Path) -> None:
    learner = Learner.restore(newest(home))
    rows = learner.trainer.items.live_rows()
    learner.refresher.arrive(rows)
    fresh = statistics(learner)
    assert fresh.nearest_share == fresh.nearest_share_embedded_now == 1.0
    learner.trainer.items.rows["vector"][rows] = learner.trainer.items.rows["vector"][rows].flip(0)
    stale = statistics(learner)
    assert stale.nearest_share is not None
    assert stale.nearest_share < 0.9
    assert stale.nearest_share_embedded_now == 1.0


# -- show ----------------------------------------------------------------------------------------------------


def leaf_of(refresher: Refresher, item: int) -> int:
    return int(refresher.leaves.codes[refresher.trainer.items.find(np.array([item]))[0]])


@pytest.mark.parametrize("item", [1, 50, 120])
def test_an_item_is_shown_in_its_leaf(item: int, call: Call, trained: Learner) -> None:
    place, refresher = call("show", "--item", str(item), "--json").json, trained.refresher
    leaf = leaf_of(refresher, item)
    assert place["item"] == item
    assert place["path"][1]["node"] == "/".join(map(str, path_of(leaf, NODES)))
    assert place["path"][0]["node"] == place["path"][1]["node"].split("/")[0]
    assert place["path"][1]["items"] == refresher.leaves.sizes[leaf]
    assert place["path"][0]["items"] == refresher.leaves.sizes.reshape(NODES)[leaf // 3].sum()
    neighbours = place["neighbours"]
    assert len(neighbours) == min(10, refresher.leaves.sizes[leaf] - 1)
    assert {leaf_of(refresher, other["item"]) for other in neighbours} <= {leaf}
    alike = [other["similarity"] for other in neighbours]
    assert alike == sorted(alike, reverse=True)
    assert item not in [other["item"] for other in neighbours]


def test_an_item_says_how_old_and_popular_it_is(call: Call, trained: Learner) -> None:
    items = trained.trainer.items
    row = int(items.live_rows()[items.rows[SEEN][items.live_rows()].argmax()])
    item = int(items.ids.ids_of(np.array([row]))[0])
    place = call("show", "--item", str(item), "--json").json
    assert place["events"] == int(items.rows[SEEN][row]) > 0
    assert 0 <= place["idle_ms"] <= place["age_ms"] <= 1_000_000
    assert place["idle_ms"] == trained.trainer.watermark_ms - int(items.rows["last_seen"][row])
    shown = call("show", "--item", str(item)).words
    for said in (f"item {item}, version 1", "events", "Path", "Most similar in its leaf"):
        assert said in shown


def test_a_node_shows_its_children_and_a_leaf_its_members(call: Call, trained: Learner) -> None:
    leaves, items = trained.refresher.leaves, trained.trainer.items
    node, leaf = call("show", "--node", "1", "--json").json, call("show", "--node", "1/2", "--json").json
    assert {child["node"] for child in node["children"]} == {"1/0", "1/1", "1/2"}
    assert node["items"] == sum(child["items"] for child in node["children"])
    assert node["popularity"] == pytest.approx(sum(child["popularity"] for child in node["children"]))
    assert (node["members"], leaf["children"]) == ([], [])
    members = items.ids.ids_of(leaves.members(5)).tolist()
    assert leaf["items"] == len(members)
    assert len(leaf["members"]) == min(len(members), MEMBERS)
    assert {member["item"] for member in leaf["members"]} <= set(members)
    for listed in (node["children"], leaf["members"]):
        popularity = [entry["popularity"] for entry in listed]
        assert popularity == sorted(popularity, reverse=True)
    assert "Children" in call("show", "--node", "1").words
    assert "Members" in call("show", "--node", "1/2").words


def test_the_tree_has_every_used_node_or_counts_it(call: Call, trained: Learner) -> None:
    report = call("show", "--json").json
    sizes = trained.refresher.leaves.sizes.reshape(NODES)
    assert len(report["branches"]) + report["others"] == (sizes.sum(1) > 0).sum()
    items = [branch["items"] for branch in report["branches"]]
    assert items == sorted(items, reverse=True)
    for branch in report["branches"]:
        children = sizes[int(branch["node"])]
        assert branch["items"] == children.sum()
        assert len(branch["branches"]) + branch["others"] == (children > 0).sum()
    assert sum(branch["popularity"] for branch in report["branches"]) == pytest.approx(1.0, abs=0.5)


def test_the_longest_bar_is_that_of_the_largest_node(call: Call) -> None:
    report, shown = call("show", "--json").json, call("show").out.splitlines()
    assert f"{NUM_ITEMS} items" in shown[0]
    of_first_level = [line for line in shown[1:] if line[0] in "├└" and "█" in line]
    bars = [line.count("█") for line in of_first_level]
    assert bars == sorted(bars, reverse=True)
    largest = report["branches"][0]
    assert bars[0] == 24
    assert f"{largest['items']} items" in of_first_level[0]


def test_before_the_index_everything_is_said_to_be_scored(call: Call, tmp_path: Path) -> None:
    path = TinyWorld(index_after_steps=1_000).train(2).checkpoint(tmp_path)
    assert "searches score all items" in call("stats", path).words
    assert "every search scores all items" in call("show", path).words
    report = call("stats", path, "--json").json
    assert (report["placed_items"], report["nearest_share"], report["largest_leaves"]) == (0, None, [])
    item = Retriever.load(path).retrieve([1], k=1)[0].items[0]
    assert call("show", path, "--item", str(item), "--json").json["path"] == []
    assert "It is in no leaf yet" in call("show", path, "--item", str(item)).words


def test_ids_that_are_strings_are_shown_as_they_came(call: Call, tmp_path: Path) -> None:
    path = TinyWorld(string_ids=True).train(4).checkpoint(tmp_path)
    place = call("show", path, "--item", "item-7", "--json").json
    assert place["item"] == "item-7"
    assert all(neighbour["item"].startswith("item-") for neighbour in place["neighbours"])


def test_brackets_in_an_id_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    member = {
        "item": "[bold]red[/]",
        "popularity": 0.1,
        "events": 1,
        "age_ms": 1,
        "idle_ms": 1,
        "similarity": 1.0,
    }
    shown = {"version": None, "checkpoint": "[x]", "node": "0/1", "items": 1, "popularity": 0.1}
    index_tables.print_node({**shown, "children": [], "members": [member]})
    said = capsys.readouterr().out
    assert "[bold]red[/]" in said
    assert "[x]" in said


def test_an_unknown_item_of_the_inspector_is_named(trained: Learner) -> None:
    with pytest.raises(DataError, match="item 999: is not in this index"):
        Inspector(trained).item(999, limit=3)


def test_paths_of_nodes_are_those_of_the_tree(trained: Learner) -> None:
    """The same numbers as in pictures and figures."""
    inspector = Inspector(trained)
    for leaf in range(12):
        path = path_of(leaf, NODES)
        coarsest = int(nodes_of_level(np.array([leaf]), NODES, 0)[0])
        assert inspector.node(path, 1).items == trained.refresher.leaves.sizes[leaf]
        assert path[0] == coarsest


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "0 ms"), (999, "999 ms"), (60_000, "1.0 min"), (5_400_000, "1.5 h"), (86_400_000, "1.0 d")],
)
def test_durations_are_in_the_largest_unit_that_fits(ms: int, said: str) -> None:
    assert index_tables._duration(ms) == said
