"""The log as lines of JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from consumers.errors import ConfigError
from pipeline.logs import JsonFormatter, set_up_logs

_SAYS = """
import logging
from pipeline.logs import set_up_logs
set_up_logs("info", "json")
log = logging.getLogger("consumers.somewhere")
log.debug("too quiet")
log.warning("offset %d\\nis %s", 7, "gone")
try:
    {}["missing"]
except KeyError:
    log.exception("it failed")
"""


def test_each_line_is_one_object_also_with_line_breaks_and_tracebacks() -> None:
    said = subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True).stderr
    first, second = map(json.loads, said.splitlines())
    assert first.pop("at").endswith("+00:00")
    assert first == {
        "level": "warning",
        "logger": "consumers.somewhere",
        "thread": "MainThread",
        "message": "offset 7\nis gone",
    }
    assert second["message"] == "it failed"
    assert "KeyError: 'missing'" in second["error"]


def test_text_that_is_no_unicode_is_still_a_line() -> None:
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "bad %s", ("\ud800",), None)
    assert json.loads(JsonFormatter().format(record))["level"] == "error"


@pytest.mark.parametrize(("level", "form"), [("loud", "text"), ("info", "xml")])
def test_a_wrong_name_is_named(level: str, form: str) -> None:
    with pytest.raises(ConfigError, match=level if form == "text" else form):
        set_up_logs(level, form)
