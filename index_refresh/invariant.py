"""What always holds of a saved index, as a sentence, a meaning and a function that looks for a breach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from index_refresh.leaf_lists import Int64s

Subject = TypeVar("Subject")

# How many of the rows, leaves or ids concerned a finding names; enough to go and look.
_NAMED = 5
_PLURALS = {"leaf": "leaves"}


@dataclass(frozen=True, slots=True)
class Problem:
    """An invariant that does not hold."""

    invariant: str
    found: str
    """What breaks it: how many rows, leaves or ids, and the first of them."""
    meaning: str
    """What it means for serving."""

    def __str__(self) -> str:
        return f"{self.invariant}: {self.found}; {self.meaning}"


@dataclass(frozen=True, slots=True)
class Invariant(Generic[Subject]):
    """What always holds, what its breach means for serving, and the function that says what breaks it
    (nothing: it holds)."""

    says: str
    meaning: str
    breach: Callable[[Subject], str]

    def problems(self, subject: Subject) -> list[Problem]:
        found = self.breach(subject)
        return [Problem(self.says, found, self.meaning)] if found else []


def breached(invariants: Iterable[Invariant[Subject]], subject: Subject) -> list[Problem]:
    """The problems that any of them has with ``subject``, in their order."""
    return [problem for invariant in invariants for problem in invariant.problems(subject)]


def some(noun: str, concerned: Sequence[Any] | Int64s) -> str:
    """How many there are and the first of them: ``7 rows: 1, 2, 3, 4, 5, ...``; nothing for none."""
    count = len(concerned)
    if not count:
        return ""
    first = ", ".join(map(str, concerned[:_NAMED])) + (", ..." if count > _NAMED else "")
    return f"{count:,} {noun if count == 1 else _PLURALS.get(noun, noun + 's')}: {first}"
