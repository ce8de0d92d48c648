from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import Stream, archive_json, commits, config_file, data_files, hsnn_archive, wait_until

from consumers.archive_layout import open_archive, read_commits
from consumers.errors import ConfigError
from pipeline.archiving import STATUS_FILE, ArchiveSettings, load_archive_settings
from pipeline.config import Settings, load_settings
from pipeline.status import read_status

HEAVY = ("torch", "mlflow", "numba", "matplotlib", "apscheduler")


@pytest.fixture
def filled(bootstrap_servers: str, make_topic: Callable[..., str]) -> tuple[str, int]:
    """A topic with three partitions, and how many records it holds."""
    topic = make_topic(3)
    with Stream(bootstrap_servers, topic, 3, rate=4_000) as stream:
        wait_until(lambda: stream.produced >= 3_000)
    return topic, stream.produced


def test_an_archiver_loads_nothing_heavy() -> None:
    program = (
        "import sys, pipeline.cli, pipeline.archiving; print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_archivers_settings_are_those_of_the_daemon(tmp_path: Path) -> None:
    config = config_file(tmp_path / "a.yaml", "broker:1", "clicks")
    ours, theirs = load_archive_settings(config), load_settings(config)
    for name in ArchiveSettings.model_fields:
        assert getattr(ours, name) == getattr(theirs, name)
        assert name in Settings.model_fields
    with pytest.raises(ConfigError, match="none of the configured topics clicks"):
        ours.schemas(["other"])
    with pytest.raises(ConfigError, match=r"archive\.rotate_bytes"):
        load_archive_settings(config_file(tmp_path / "b.yaml", "broker:1", "clicks", rotate_bytes=0))


def test_a_run_archives_everything_and_says_so(
    filled: tuple[str, int], bootstrap_servers: str, tmp_path: Path
) -> None:
    topic, produced = filled
    config = config_file(tmp_path / "one.yaml", bootstrap_servers, topic)
    root = tmp_path / "archive"
    report = archive_json("--to", root, "--config", config, "--stop-at-end")
    assert (report["records"], report["lag"], report["lost_races"]) == (produced, 0, 0)
    assert sum(report["partitions"].values()) == produced
    status = read_status(tmp_path / "one" / STATUS_FILE)
    assert (status["records"], status["to"], status["buffered_records"]) == (produced, str(root), 0)

    verified = archive_json("verify", root, "--deep", "--bootstrap-servers", bootstrap_servers)
    assert (verified["records"], verified["problems"], verified["leftovers"]) == (produced, [], [])
    compacted = archive_json("compact", root, "--older-than", "0")
    assert compacted["commits_after"] == 3 <= compacted["commits_before"]
    again = archive_json("verify", root, "--deep", "--config", config, "--kafka")
    assert (again["records"], again["rows"], again["problems"]) == (produced, verified["rows"], [])


def test_what_is_wrong_ends_with_one_and_is_named(
    filled: tuple[str, int], bootstrap_servers: str, tmp_path: Path
) -> None:
    topic, _ = filled
    config, root = config_file(tmp_path / "one.yaml", bootstrap_servers, topic), tmp_path / "archive"
    archive_json("--to", root, "--config", config, "--stop-at-end")
    victim = sorted(root.glob("topic=*/dt=*/hour=*/part-*"))[0]
    victim.unlink()
    verified = archive_json("verify", root, status=1)
    assert not verified["whole"]
    assert victim.name in verified["problems"][0]


@pytest.mark.parametrize("arguments", [[], ["verify", "nowhere"], ["compact", "nowhere"]])
def test_wrong_use_ends_with_two(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "archive", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "configuration:" in done.stderr


def test_sigterm_writes_what_waits_and_leaves(
    filled: tuple[str, int], bootstrap_servers: str, tmp_path: Path
) -> None:
    topic, produced = filled
    patient = {"rotate_every_s": 3_600, "idle_flush_s": 3_600}
    config, root = (
        config_file(tmp_path / "one.yaml", bootstrap_servers, topic, **patient),
        tmp_path / "archive",
    )
    status_file = tmp_path / "one" / STATUS_FILE
    with hsnn_archive("--to", root, "--config", config, "--json") as process:
        wait_until(lambda: status_file.exists() and read_status(status_file)["buffered_records"] == produced)
        assert commits(root) == []
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1])["records"] == produced
    assert archive_json("verify", root)["problems"] == []


def test_killed_in_the_middle_of_writing_it_goes_on_without_loss_or_doubles(
    filled: tuple[str, int], bootstrap_servers: str, tmp_path: Path
) -> None:
    topic, produced = filled
    # A static member: the embedded broker never lets go of a dead one, and Kafka only after its session.
    config = config_file(
        tmp_path / "one.yaml", bootstrap_servers, topic, group_instance_id="one", rotate_bytes=100_000
    )
    root = tmp_path / "archive"
    for wanted in (1, 5):
        with hsnn_archive("--to", root, "--config", config) as process:
            wait_until(lambda: len(data_files(root)) >= wanted)  # noqa: B023
            process.kill()
        if (root / f"topic={topic}" / "_commits").is_dir():
            assert archive_json("verify", root, "--deep")["problems"] == []
    archive_json("--to", root, "--config", config, "--stop-at-end")
    verified = archive_json("verify", root, "--deep", "--config", config, "--kafka")
    assert (verified["records"], verified["problems"], verified["leftovers"]) == (produced, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_of_two_archivers_one_dies_and_the_other_takes_its_partitions(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic, root = make_topic(4), tmp_path / "archive"
    first, second = (
        config_file(tmp_path / f"{name}.yaml", bootstrap_servers, topic) for name in ("first", "second")
    )

    def owned(name: str) -> int:
        path = tmp_path / name / STATUS_FILE
        return len(read_status(path)["partitions"]) if path.exists() else 0

    with (
        Stream(bootstrap_servers, topic, 4, rate=500) as stream,
        hsnn_archive("--to", root, "--config", first) as survivor,
    ):
        wait_until(lambda: owned("first") == 4)
        with hsnn_archive("--to", root, "--config", second) as victim:
            wait_until(lambda: owned("first") == 2 == owned("second"))
            victim.kill()
        wait_until(lambda: owned("first") == 4)
        done = len(commits(root))
        wait_until(lambda: len(commits(root)) > done + 8)
        survivor.send_signal(signal.SIGTERM)
        survivor.communicate(timeout=60)
        assert survivor.returncode == 0
    archive_json("--to", root, "--config", first, "--stop-at-end")
    verified = archive_json("verify", root, "--deep", "--config", first, "--kafka")
    assert (verified["records"], verified["problems"]) == (stream.produced, [])
    assert len({commit.partition for commit in read_commits(*open_archive(root), topic)}) == 4
