"""The servers that a team keeps its versions on, as processes of a test's own: PostgreSQL, an S3 server, and
MLflow's tracking server with users and passwords.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from pipeline.brokers import free_port

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "admin", "a-long-password"
BUCKET = "versions"
AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    # A machine without a role must not be asked for one.
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_S = 180.0


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll within a bound; a process that ended, or never came up, fails with what it wrote."""
    until = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"{process.args!r} did not come up:\n{log.read_text(errors='replace')[-3_000:]}")
        threading.Event().wait(0.1)


@contextmanager
def running(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children, gone at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (15, 9):
        if process.poll() is None or number == 9:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            continue


# -- PostgreSQL --------------------------------------------------------------------------------------------


@contextmanager
def postgres() -> Iterator[str]:
    """An empty PostgreSQL; its SQLAlchemy address."""
    import psycopg2

    programs, port = _postgres_programs(), free_port()
    # PostgreSQL refuses to run as root, and whoever else runs it must reach its folder.
    folder = Path(tempfile.mkdtemp(prefix="hsnn-postgres-"))
    nobody = {"user": "nobody", "group": 65_534, "extra_groups": []}
    as_whom: dict[str, Any] = nobody if os.getuid() == 0 else {}
    if as_whom:
        shutil.chown(folder, "nobody")
    try:
        data = str(folder / "data")
        initdb = [str(programs / "initdb"), "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, timeout=120, **as_whom)
        server = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", str(folder)]
        address = f"postgresql://mlflow@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                psycopg2.connect(address).close()
            except psycopg2.OperationalError:
                return False
            return True

        log = folder / "postgres.log"
        with running(server, log, cwd=folder, **as_whom) as process:
            wait_for(answers, process, log)
            # SQLAlchemy 2.1 takes an address that names no driver for one of psycopg 3.
            yield address.replace("postgresql:", "postgresql+psycopg2:")
    finally:
        shutil.rmtree(folder)


def _postgres_programs() -> Path:
    """The folder of ``initdb`` and ``postgres``: the installed ones, else those that Maven fetches once."""
    installed = shutil.which("initdb")
    beside = Path(installed).resolve().parent if installed else None
    if beside is not None and (beside / "postgres").exists() and "HSNN_FETCH_POSTGRES" not in os.environ:
        return beside
    return _fetched_postgres() / "bin"


def _fetched_postgres() -> Path:
    maven = shutil.which("mvn")
    if maven is None:
        pytest.skip("PostgreSQL is not installed, and fetching it needs Maven")
    cache = ROOT / ".postgres"
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "programs").is_dir():
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={cache}"]
            pom = str(ROOT / "tests" / "postgres" / "pom.xml")
            command = [maven, "--batch-mode", "--quiet", "--file", pom, *goal]
            subprocess.run(command, check=True, capture_output=True, timeout=240)
            _unpack(next(cache.glob("*.jar")), cache / "programs")
    return cache / "programs"


def _unpack(jar: Path, target: Path) -> None:
    """A jar that holds an archive of the programs; renamed in one step, so that a half is never used."""
    half = target.with_name("unpacking")
    shutil.rmtree(half, ignore_errors=True)
    with zipfile.ZipFile(jar) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".txz")]
        with outer.open(name) as packed, lzma.open(packed) as unpacked, _tar(unpacked) as archive:
            archive.extractall(half, filter="data")
    half.rename(target)


def _tar(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|")


# -- S3 ----------------------------------------------------------------------------------------------------


class Bucket:
    """A bucket on an S3 server; ``environment`` is how clients find it."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.environment = {**AWS, "MLFLOW_S3_ENDPOINT_URL": endpoint}
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=AWS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=AWS["AWS_SECRET_ACCESS_KEY"],
            region_name=AWS["AWS_DEFAULT_REGION"],
        )
        self._client.create_bucket(Bucket=BUCKET)

    def num_bytes(self, prefix: str) -> int:
        """Of the objects there."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sum(found["Size"] for page in pages for found in page.get("Contents", []))


@contextmanager
def s3() -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Bucket(f"http://{host}:{port}")
    finally:
        server.stop()


# -- MLflow ------------------------------------------------------------------------------------------------


@contextmanager
def tracking_server(
    folder: Path, backend: str, artifacts: str, environment: Mapping[str, str]
) -> Iterator[str]:
    """MLflow's server with users and passwords, through which artifacts go to ``artifacts``; its address."""
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = {USER}\n"
        f"admin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Every file of a version is a request, and checking a password takes a tenth of a second.
        "auth_cache_ttl_seconds = 60\n"
    )
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", backend]
    command += ["--artifacts-destination", artifacts]
    given = {
        **os.environ,
        **environment,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Six processes that evaluate language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        given.pop(name, None)
    log = folder / "server.log"
    with running(command, log, cwd=folder, env=given) as process:
        wait_for(lambda: _is_healthy(address), process, log)
        yield address


def _is_healthy(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False
