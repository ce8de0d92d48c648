"""Archivers killed at random instants, while a producer goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import Stream, archive_json, commits, config_file, data_files, hsnn_archive, message

from consumers import columns as c
from consumers.archive_layout import files_by_partition, open_archive, read_commits

KILLS = int(os.environ.get("HSNN_ARCHIVE_KILLS", "200"))
PARTITIONS = 3
RATE = 1_000.0


def rows_of(root: Path, topic: str) -> pa.Table:
    """Place and item of every row of all committed files."""
    files = files_by_partition(read_commits(*open_archive(root), topic)).values()
    names = [c.PARTITION, c.OFFSET, c.ROW, c.ITEM_ID, c.KEY, c.ERROR]
    tables = [pq.ParquetFile(root / file.path).read(columns=names) for of_one in files for file in of_one]
    return pa.concat_tables(tables, promote_options="permissive")


def killed_at_random(draw: random.Random, root: Path, config: Path, log: Path) -> None:
    """Start an archiver and kill it: by the clock, in the middle of a flush, or some moments after one."""
    files, written = len(data_files(root)) + draw.randint(1, 6), len(commits(root)) + draw.randint(1, 9)
    instants: list[Callable[[], bool]] = [
        lambda: False,
        lambda: len(data_files(root)) >= files,
        lambda: len(commits(root)) >= written,
    ]
    is_time = draw.choice(instants)
    until = time.monotonic() + (draw.uniform(0.2, 2.5) if is_time is instants[0] else 10.0)
    with hsnn_archive("--to", root, "--config", config, log=log) as process:
        while time.monotonic() < until and not is_time():
            time.sleep(0.002)
        time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.05)]))
        assert process.poll() is None, log.read_text()[-2_000:]
        process.send_signal(signal.SIGKILL)


def killed_while_compacting(draw: random.Random, root: Path) -> None:
    with hsnn_archive("compact", root, "--older-than", "0") as process:
        time.sleep(draw.uniform(0.5, 1.2))
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("bootstrap_servers", ["kafka"], indirect=True)
def test_after_many_kills_the_archive_holds_every_record_once(
    bootstrap_servers: str, make_topic: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic, root, draw = make_topic(PARTITIONS), tmp_path / "archive", random.Random(11)
    log = tmp_path / "archiver.log"
    config = config_file(tmp_path / "kills.yaml", bootstrap_servers, topic, group_instance_id="one")

    with Stream(bootstrap_servers, topic, PARTITIONS, RATE) as stream:
        for number in range(KILLS):
            killed_at_random(draw, root, config, log)
            if number % 10 == 9:
                killed_while_compacting(draw, root)

    killed_commits = len(commits(root))
    archive_json("--to", root, "--config", config, "--stop-at-end")
    # An archiver removes what flushes left; what a compaction replaced and did not remove is the next one's.
    archive_json("compact", root, "--older-than", "0")
    verified = archive_json("verify", root, "--deep", "--config", config, "--kafka")
    rows = rows_of(root, topic)
    with capsys.disabled():
        print(
            f"\narchive: kills {KILLS} commits {killed_commits} records {verified['records']} of "
            f"{stream.produced} rows {verified['rows']} leftovers {len(verified['leftovers'])}"
        )
    assert verified["problems"] == []
    assert verified["leftovers"] == []
    assert verified["records"] == stream.produced
    assert sum(part["compared"] for part in verified["partitions"].values()) == stream.produced
    assert killed_commits > KILLS / 4, "the archivers were killed before they wrote anything"
    keys = np.array([int(key) for key in rows.column(c.KEY).to_pylist()])
    expected = np.arange(stream.produced)
    three_rows = np.repeat(expected[expected % 100 == 7], 2)
    assert np.array_equal(np.sort(keys), np.sort(np.concatenate([expected, three_rows])))
    unread = rows.filter(pa.compute.is_valid(rows.column(c.ERROR))).column(c.KEY).to_pylist()
    assert sorted(int(key) for key in unread) == [n for n in range(stream.produced) if n % 100 == 9]
    assert message(9) == b"not an event"
