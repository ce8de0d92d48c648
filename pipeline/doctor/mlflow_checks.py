"""Check of the MLflow store: a server, a database, or the file store that MLflow no longer takes."""

from __future__ import annotations

import base64
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.doctor.check import Address, Check, DoctorConfig, Status, connection_error
from pipeline.doctor.machine_checks import nearest_existing, write_error


def _mlflow(status: Status, finding: str, remedy: str = "") -> Check:
    return Check("mlflow", status, finding, remedy)


def check_mlflow(config: DoctorConfig) -> list[Check]:
    uri = config.tracking_uri.strip()
    scheme = uri.partition("://")[0].partition(":")[0] if ":" in uri else ""
    if scheme in {"http", "https"}:
        return [_check_mlflow_server(uri.rstrip("/"), config.timeout_s)]
    if scheme.partition("+")[0] in {"sqlite", "postgresql", "mysql", "mssql"}:
        return [_check_mlflow_database(uri, config.timeout_s)]
    if scheme in {"", "file"}:
        finding = f"{uri or 'the empty address'} is a file store, which MLflow refuses since 3.13"
        remedy = "use sqlite:///FOLDER/mlflow.db; `mlflow migrate-filestore` brings old runs along"
        return [_mlflow(Status.FAIL, finding, remedy)]
    return [_mlflow(Status.WARN, f"{scheme} stores are not checked", "see that it is reachable")]


def _check_mlflow_server(uri: str, timeout_s: float) -> Check:
    shown = re.sub(r"//[^/@]*@", "//***@", uri)
    try:
        version = _get(f"{uri}/version", timeout_s)
        _get(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout_s)
    except urllib.error.HTTPError as error:
        remedy = _HTTP_REMEDIES.get(error.code, "see the server's log, and that this is an MLflow server")
        return _mlflow(Status.FAIL, f"{shown} answered {error.code} {error.reason}", remedy)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return _mlflow(Status.FAIL, f"{shown} cannot be reached: {reason}", "check that the server runs")
    return _mlflow(Status.OK, f"MLflow server {version} at {shown}")


_HTTP_REMEDIES = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    403: "give the user permission, or start the server with --allowed-hosts naming this host",
}


def _get(url: str, timeout_s: float) -> str:
    # urllib, not MLflow's client: that one retries for minutes before it says anything.
    request = urllib.request.Request(url, headers=_authorization())  # noqa: S310 (http and https only)
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
        text: str = reply.read(10_000).decode(errors="replace")
    return text.strip()


def _authorization() -> dict[str, str]:
    """MLflow's own environment variables, in its own order."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_mlflow_database(uri: str, timeout_s: float) -> Check:
    try:
        url = make_url(uri)
        url.get_dialect()
    except (ArgumentError, ValueError) as error:
        return _mlflow(Status.FAIL, f"{uri!r} is no database address: {error}", "correct tracking_uri")
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return _judge_new_sqlite(url, shown)
    if error_text := _network_error(url, timeout_s):
        return _mlflow(Status.FAIL, f"{shown}: {error_text}", "check that the database runs")
    return _judge_tables(url, shown)


def _network_error(url: URL, timeout_s: float) -> str:
    """Asked first, since some drivers wait for minutes."""
    if not url.host:
        return ""
    return connection_error(Address(url.host, url.port or _PORTS[url.get_backend_name()]), timeout_s)


def _judge_tables(url: URL, shown: str) -> Check:
    try:
        num_tables = _num_mlflow_tables(url)
    except ModuleNotFoundError as error:
        package = _DRIVERS.get(str(error.name), str(error.name))
        return _mlflow(Status.FAIL, f"{shown} needs the driver {error.name}", f"pip install {package}")
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        return _mlflow(Status.FAIL, f"{shown} cannot be used: {reason}", "check the address and the user")
    contents = "with MLflow's tables" if num_tables else "without tables; MLflow makes them when first used"
    return _mlflow(Status.OK, f"{url.get_backend_name()} store {shown} {contents}")


_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def _judge_new_sqlite(url: URL, shown: str) -> Check:
    """A database file that is not there yet: opening it to look would create it."""
    folder = nearest_existing(Path(url.database or ".").absolute().parent)
    if error := write_error(folder):
        return _mlflow(Status.FAIL, f"{shown} cannot be created: {error}", "choose another path")
    return _mlflow(Status.OK, f"sqlite store {shown}, created when first used")


def _num_mlflow_tables(url: URL) -> int:
    engine = create_engine(url)
    try:
        tables = inspect(engine).get_table_names()
    finally:
        engine.dispose()
    return len({"experiments", "runs", "registered_models"} & set(tables))
