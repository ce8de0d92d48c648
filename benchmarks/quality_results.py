"""Results of the benchmark ``quality``: kept as JSON run by run, and put together over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict

from benchmarks.quality_run import KS, Measured

HEADLINE_K = KS[1]
FILE = "quality.json"


class Record(BaseModel):
    """One search of one contender on one world with one seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    world: str
    seed: int
    entry: str
    """The run it came from."""
    name: str
    """Contender, and behind ``|`` its setting."""
    run: str
    """Everything that the figures depend on besides the code: a later run with the same may reuse them."""
    date: str
    measured: Measured

    @property
    def contender(self) -> str:
        return self.name.partition("|")[0]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Standard deviation between seeds; None of one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def text(self, digits: int = 3) -> str:
        deviation = self.deviation
        return f"{self.mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


class Results:
    """All records, and the best setting of each contender by recall@200, in hindsight."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(records)

    def worlds(self) -> list[str]:
        return list(dict.fromkeys(record.world for record in self.records))

    def seeds(self, world: str) -> list[int]:
        return sorted({record.seed for record in self.records if record.world == world})

    def contenders(self, world: str) -> list[str]:
        return list(dict.fromkeys(record.contender for record in self.records if record.world == world))

    def has(self, world: str, seed: int, entry: str) -> bool:
        return any((r.world, r.seed, r.entry) == (world, seed, entry) for r in self.records)

    def drop_others(self, world: str, run: str) -> None:
        """Forget what this world showed in other runs: their events were others, and nothing compares."""
        self.records = [record for record in self.records if record.world != world or record.run == run]

    def put(self, added: list[Record]) -> None:
        """In place of what there was of the same run."""
        keys = {(record.world, record.seed, record.entry) for record in added}
        self.records = [r for r in self.records if (r.world, r.seed, r.entry) not in keys] + added

    def of(self, world: str, contender: str) -> list[Record]:
        """Records of the contender's best setting, one a seed; empty where it did not run."""
        names: dict[str, list[Record]] = {}
        for record in self.records:
            if record.world == world and record.contender == contender:
                names.setdefault(record.name, []).append(record)
        if not names:
            return []
        return max(names.values(), key=lambda found: np.mean([r.measured.recall[HEADLINE_K] for r in found]))

    def spread(self, world: str, contender: str, of: Callable[[Measured], float | None]) -> Spread | None:
        """A figure over seeds; None where it was not measured."""
        values = [of(record.measured) for record in self.of(world, contender)]
        found = tuple(value for value in values if value is not None)
        return Spread(found) if found else None

    def recall(self, world: str, contender: str, k: int = HEADLINE_K) -> float | None:
        spread = self.spread(world, contender, lambda measured: measured.recall[k])
        return None if spread is None else spread.mean

    # -- on disk -----------------------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: Path) -> Results:
        path = folder / FILE
        if not path.is_file():
            return cls()
        return cls(Record.model_validate(row) for row in orjson.loads(path.read_bytes())["records"])

    def write(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [record.model_dump(mode="json") for record in self.records]
        content = orjson.dumps({**about, "records": rows}, option=orjson.OPT_INDENT_2)
        (folder / FILE).write_bytes(content + b"\n")
