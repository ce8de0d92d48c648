"""Cron expressions as crontab users mean them: five fields, in UTC, Sunday is 0 or 7.

APScheduler 3 reads them almost so: its weekday 0 is Monday, it takes ``mon#1`` for every Monday, and where a
day of the month and weekdays are both given it wants both of them, cron either. Here what would be read
otherwise than it was meant is translated or refused.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from apscheduler.triggers.cron import CronTrigger

from consumers.errors import ConfigError

_FIELDS = ("minute", "hour", "day of the month", "month", "weekday")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PART = re.compile(r"(?:\*|(?P<first>\d+|[a-z]{3})(?:-(?P<last>\d+|[a-z]{3}))?)(?:/(?P<step>\d+))?")


def cron_trigger(expression: str) -> CronTrigger:
    """When the expression says, in UTC.

    Raises:
        ConfigError: the expression is not one of cron, can be read in two ways, or names a time that never
            comes.
    """
    fields = expression.lower().split()
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"{expression!r} has {len(fields)} fields; give five ({', '.join(_FIELDS)}), as in '0 3 * * *'"
        )
    for name, field in zip(_FIELDS, fields, strict=True):
        _check_field(name, field)
    *times, day, month, weekdays = fields
    if not day.startswith("*") and not weekdays.startswith("*"):
        raise ConfigError(
            f"{expression!r} gives days of the month and weekdays, which programs read in two ways; "
            "put * into one of them"
        )
    return _trigger(expression, [*times, day, month, _weekdays(weekdays)])


def _check_field(name: str, field: str) -> None:
    for part in field.split(","):
        if _PART.fullmatch(part) is None:
            raise ConfigError(
                f"{part!r} is not a {name}; give *, a value or a range, each with /step if need be"
            )


def _weekdays(field: str) -> str:
    """The same days by name, for names mean the same to everybody."""
    days = {day for part in field.split(",") for day in _days_of(part)}
    return ",".join(_WEEKDAYS[day] for day in sorted(days))


def _days_of(part: str) -> set[int]:
    match = _PART.fullmatch(part)
    assert match is not None
    step = int(match["step"] or 1)
    first = _day(match["first"]) if match["first"] else 0
    last = _day(match["last"]) if match["last"] else first
    if match["first"] is None or (match["step"] and not match["last"]):
        last = len(_WEEKDAYS) - 1
    if first > last or not step:
        raise ConfigError(f"{part!r} holds no weekday; give the earlier day first (sun is 0 or 7)")
    return {day % len(_WEEKDAYS) for day in range(first, last + 1, step)}


def _day(word: str) -> int:
    if word in _WEEKDAYS:
        return _WEEKDAYS.index(word)
    if word.isdigit() and int(word) <= len(_WEEKDAYS):
        return int(word)
    raise ConfigError(f"{word!r} is not a weekday; give 0 to 7 or {', '.join(_WEEKDAYS)}")


def _trigger(expression: str, fields: list[str]) -> CronTrigger:
    try:
        trigger = CronTrigger.from_crontab(" ".join(fields), timezone="UTC")
    except ValueError as error:
        raise ConfigError(f"{expression!r}: {error}") from error
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ConfigError(f"{expression!r} names a time that never comes; is there such a day in that month?")
    return trigger
