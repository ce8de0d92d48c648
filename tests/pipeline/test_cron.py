"""Cron expressions mean what crontab users mean by them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import ConfigError
from pipeline.cron import cron_trigger

# A Wednesday.
NOW = datetime(2025, 1, 1, 12, 30, 1, tzinfo=UTC)
NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def turns(expression: str, count: int) -> list[datetime]:
    trigger = cron_trigger(expression)
    found = [trigger.get_next_fire_time(None, NOW)]
    while len(found) < count:
        found.append(trigger.get_next_fire_time(found[-1], found[-1]))
    return found


def by_walking(minutes: set[int], hours: set[int], weekdays: set[int], count: int) -> list[datetime]:
    """Every minute of the calendar is looked at; weekdays count from Sunday, as in crontab."""
    found, at = [], NOW.replace(second=0) + timedelta(minutes=1)
    while len(found) < count:
        if at.minute in minutes and at.hour in hours and at.isoweekday() % 7 in weekdays:
            found.append(at)
        at += timedelta(minutes=1)
    return found


@given(
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=3),
    weekdays=st.sets(st.integers(0, 7), min_size=1, max_size=4),
    by_name=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_turns_come_at_the_minutes_hours_and_weekdays_that_are_listed(
    minutes: set[int], hours: set[int], weekdays: set[int], by_name: bool
) -> None:
    days = [NAMES[day % 7] if by_name else str(day) for day in weekdays]
    expression = f"{_listed(minutes)} {_listed(hours)} * * {','.join(days)}"
    assert turns(expression, 4) == by_walking(minutes, hours, {day % 7 for day in weekdays}, 4)


def _listed(values: set[int]) -> str:
    return ",".join(map(str, values))


@pytest.mark.parametrize(
    ("weekdays", "meant"),
    [
        ("0", {0}),
        ("7", {0}),
        ("1", {1}),
        ("1-5", {1, 2, 3, 4, 5}),
        ("mon-fri", {1, 2, 3, 4, 5}),
        ("MON,Wed", {1, 3}),
        ("5-7", {5, 6, 0}),
        ("0-6/2", {0, 2, 4, 6}),
        ("*/3", {0, 3, 6}),
        ("4/1", {4, 5, 6}),
        ("*", set(range(7))),
    ],
)
def test_weekdays_count_from_sunday(weekdays: str, meant: set[int]) -> None:
    assert turns(f"0 3 * * {weekdays}", 9) == by_walking({0}, {3}, meant, 9)


def test_days_and_months_are_understood() -> None:
    assert turns("15 4 29 2 *", 1) == [datetime(2028, 2, 29, 4, 15, tzinfo=UTC)]
    assert turns("*/30 0 1 */6 *", 3) == [
        datetime(2025, 7, 1, 0, 0, tzinfo=UTC),
        datetime(2025, 7, 1, 0, 30, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "has 0 fields; give five"),
        ("0 3 * *", "has 4 fields"),
        ("0 0 3 * * *", "has 6 fields"),
        ("@daily", "has 1 fields"),
        ("60 3 * * *", "60"),
        ("0 24 * * *", "24"),
        ("0 0 0 * *", "0"),
        ("0 0 1 13 *", "13"),
        ("*/0 * * * *", "higher than 0"),
        ("x * * * *", "'x' is not a minute"),
        ("1,,2 * * * *", "'' is not a minute"),
        ("0 3 * * mon#1", "'mon#1' is not a weekday"),
        ("0 3 * * 8", "'8' is not a weekday"),
        ("0 3 * * mun", "'mun' is not a weekday"),
        ("0 3 * * fri-mon", "earlier day first"),
        ("0 3 * * 1-5/0", "holds no weekday"),
        ("0 3 last * *", "'last' is not a day of the month"),
        ("0 3 13 * fri", "two ways"),
        ("0 3 31 2 *", "never comes"),
    ],
)
def test_what_is_no_time_or_two_times_is_refused(expression: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("*", r"\*")):
        cron_trigger(expression)
