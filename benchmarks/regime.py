"""Tastes change at noon: recall through the living index against a frozen one and a nightly Two Tower + IVF.

One simulated world, one seed, one sequence of events. Everybody answers the same events before learning them,
with the same k, and may score the same share of the items. Items are born and die and interests drift all the
time; in the middle of the run most users get new interests at once, and topics swap their appeal.

Hours and surfaces push nobody in this world: a daily rhythm would look like the nightly rebuild. Events are
positives only, so that every event of the run says what somebody wants.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.corpus import Int64s
from benchmarks.harness import Report, parser
from benchmarks.regime_contenders import (
    NIGHT_MS,
    Answer,
    Contender,
    FrozenIndex,
    Living,
    Nightly,
    Requests,
    hits,
)
from benchmarks.regime_levels import WINDOWS_PER_DAY, Levels, Line
from benchmarks.regime_picture import draw
from benchmarks.world_batches import WorldBatches, users_of
from consumers import columns as c
from consumers.batch import EntityBatch, EventBatch
from index_refresh.evaluation import EvaluationConfig
from index_refresh.learner import LearnerConfig
from pipeline.simulator import World, WorldConfig
from pipeline.simulator.config import TasteConfig
from pipeline.world_stream import CONTEXT_FEATURES, ITEM_FEATURES, USER_FEATURES
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNNConfig
from trainers.trainer import TrainerConfig

ITEMS, QUICK_ITEMS = 6_000, 2_000
PICTURE = "docs/images/regime.png"
WINDOW_MS = NIGHT_MS // WINDOWS_PER_DAY
# More than any run reads: the nights end it.
ENDLESS = 10**12
SECONDS_A_DAY = 86_400
# In the JSON, and how the table says it.
KEYS = {
    "living": Living.INDEX,
    "flat": Living.FLAT,
    "frozen": FrozenIndex.NAME,
    "nightly": Nightly.NAME,
    "nightly_exact": Nightly.FLAT,
    "popularity": Living.POPULARITY,
}


class ScenarioConfig(BaseModel):
    """A world with one change, and how it is watched. Rates follow the number of items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="Of the world and of every learner")
    num_items: int = Field(ITEMS, ge=100)
    nights_before: float = Field(6.5, gt=1, description="Nights before the change; half a night is noon")
    nights_after: float = Field(3.5, gt=1)
    users_per_item: float = Field(0.2, gt=0)
    impressions_per_item: float = Field(64.0, gt=0, description="A day")
    saturation_hours: float = Field(3.0, gt=0, description="Until users tire less of what they saw")
    item_lifetime_hours: float = Field(72.0, gt=0, description="Births make up for deaths")
    interest_drift_per_day: float = Field(0.1, ge=0)
    strength: float = Field(0.7, ge=0, le=1, description="Of the change: share of users and of topics")
    queries: int = Field(128, ge=1, description="Events of a batch that are answered")

    @property
    def change_ms(self) -> int:
        return WorldConfig().start_ms + round(self.nights_before * NIGHT_MS)

    @property
    def last_window(self) -> int:
        return round(self.nights_after * WINDOWS_PER_DAY)

    @property
    def first_window(self) -> int:
        return -round(self.nights_before * WINDOWS_PER_DAY)

    def in_words(self) -> str:
        return (
            f"{self.num_items:,} items that live {self.item_lifetime_hours:.0f} h, "
            f"{self.strength:.0%} of the users change interests; events are answered before they are learnt"
        )

    def world(self) -> World:
        impressions_a_day = self.impressions_per_item * self.num_items
        births_a_day = self.num_items * 24 / self.item_lifetime_hours
        config = WorldConfig(
            seed=self.seed,
            num_users=max(round(self.users_per_item * self.num_items), 1),
            num_items=self.num_items,
            tastes=TasteConfig(gate=0.0),
            births_per_1k_events=1_000 * births_a_day / impressions_a_day,
            item_lifetime_hours=self.item_lifetime_hours,
            saturation_hours=self.saturation_hours,
            interest_drift_per_day=self.interest_drift_per_day,
            regime_at_events=(round(self.nights_before * impressions_a_day),),
            regime_strength=self.strength,
            events_per_second=impressions_a_day / SECONDS_A_DAY,
            positives_only=True,
        )
        return World(config)

    def learner(self) -> LearnerConfig:
        """Defaults of the daemon, but for the number of nodes: about the square root of the items. The
        learner's own evaluation is off, since contenders answer here."""
        nodes = max(8, 2 ** round(np.log2(self.num_items**0.5)))
        return LearnerConfig(
            trainer=TrainerConfig(seed=self.seed, model=HSNNConfig(codebook=CodebookConfig(nodes=(nodes,)))),
            evaluation=EvaluationConfig(scores_per_event=1e-9),
            item_features=ITEM_FEATURES,
            user_features=USER_FEATURES,
            context_features=CONTEXT_FEATURES,
        )


class Change(NamedTuple):
    """Something to take in, and the window of stream time in which it is handed out."""

    window: int
    batch: EntityBatch | EventBatch


class Stream:
    """The world as batches, each with the window of stream time in which it is handed out."""

    def __init__(self, scenario: ScenarioConfig, batch_size: int) -> None:
        self._scenario, self._cutter = scenario, WorldBatches(batch_size)

    def __iter__(self) -> Iterator[Change]:
        world = self._scenario.world()
        yield Change(self._scenario.first_window, users_of(world))
        for step in world.stream(ENDLESS):
            window = (step.time_ms - self._scenario.change_ms) // WINDOW_MS
            if window >= self._scenario.last_window:
                return
            for batch in self._cutter.of(step):
                yield Change(window, batch)


class Race:
    """All contenders on one stream, and what each of them found."""

    def __init__(self, scenario: ScenarioConfig) -> None:
        self.scenario = scenario
        config = scenario.learner()
        self.living = Living(config)
        self.contenders: list[Contender] = [
            self.living,
            Nightly(config, config.trainer.model.codebook.num_leaves),
        ]
        self.lines: defaultdict[str, Line] = defaultdict(Line)
        self.events: Counter[int] = Counter()
        """Events trained, by window."""

    def run(self, report: Report) -> None:
        scenario = self.scenario
        stream = Stream(scenario, self.living.learner.config.trainer.batch_size)
        windows = groupby(stream, key=lambda change: change.window)
        total = scenario.last_window - scenario.first_window
        for window, changes in report.track(windows, "quarters of a day", total=total):
            if window == 0:
                self._freeze()
            for change in changes:
                self._take_in(window, change.batch)

    def _freeze(self) -> None:
        """Until the change, the frozen index is the living one."""
        self.contenders.append(FrozenIndex(self.living.learner))
        self.lines[FrozenIndex.NAME] = self.lines[Living.INDEX].copy()

    def _take_in(self, window: int, batch: EntityBatch | EventBatch) -> None:
        if isinstance(batch, EntityBatch):
            for contender in self.contenders:
                contender.apply(batch)
            return
        requests = self._requests(batch)
        for contender in self.contenders:
            for name, answer in contender.answer(requests).items():
                self._count(window, name, answer, requests)
        for contender in self.contenders:
            contender.learn(batch)
        self.events[window] += len(batch)

    def _requests(self, batch: EventBatch) -> Requests:
        learner = self.living.learner
        positive = np.flatnonzero(batch.table.column(c.LABEL).to_numpy() > 0)
        places = np.linspace(0, len(positive) - 1, min(self.scenario.queries, len(positive)))
        table = batch.table.take(pa.array(positive[places.astype(np.int64)]))
        num_items = len(learner.trainer.items)
        return Requests(table, learner.config.evaluation.k, learner.evaluator.budget(num_items))

    def _count(self, window: int, name: str, answer: Answer, requests: Requests) -> None:
        wanted_B: Int64s = requests.table.column(c.ITEM_ID).to_numpy()
        num_hits = int(hits(answer, wanted_B).sum())
        share = answer.scored / max(len(self.living.learner.trainer.items), 1)
        self.lines[name].add(window, num_hits, len(requests), share)

    # -- what came out -----------------------------------------------------------------------------------

    def best_lines(self) -> dict[str, Line]:
        """One line a contender, by its name; popularity with the half-life that did best over the run."""
        lines = dict(self.lines)
        popular = [lines.pop(name) for name in self.lines if name.startswith(Living.POPULARITY)]
        lines[Living.POPULARITY] = max(popular, key=lambda line: line.hits.total())
        return {name: lines[name] for name in KEYS.values()}

    def levels(self) -> dict[str, Levels]:
        return {name: Levels.of(line, self.scenario.last_window) for name, line in self.best_lines().items()}

    def events_until(self, window: int | None) -> int | None:
        """Events trained from the change until a window begins."""
        return None if window is None else sum(self.events[number] for number in range(window))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    report = Report(arguments)
    scenario = _scenario(arguments)
    report.say(f"{scenario}\n{scenario.world().config}")
    race = Race(scenario)
    race.run(report)
    show(report, race)
    picture = arguments.picture or (None if arguments.quick else PICTURE)
    if picture is not None:
        span = scenario.first_window, scenario.last_window
        draw(Path(picture), race.best_lines(), race.levels(), span, scenario.in_words())
        report.say(f"picture: {picture}")
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("regime", "Recall around a change of tastes: living, frozen and nightly rebuilt indexes")
    found.add_argument("--picture", help=f"where to draw it (default: {PICTURE}; with --quick nowhere)")
    found.add_argument("--nights-before", type=float, help="the change comes then (default: 6.5; quick: 3.5)")
    found.add_argument("--nights-after", type=float, help="nights after it (default: 3.5; quick: 2)")
    found.add_argument(
        "--lifetime", type=float, default=72.0, help="mean life of an item, hours (default: 72)"
    )
    found.add_argument(
        "--strength", type=float, default=0.7, help="share of users that change (default: 0.7)"
    )
    return found


def _scenario(arguments: argparse.Namespace) -> ScenarioConfig:
    return ScenarioConfig(
        seed=arguments.seed,
        num_items=arguments.items or (QUICK_ITEMS if arguments.quick else ITEMS),
        nights_before=arguments.nights_before or (3.5 if arguments.quick else 6.5),
        nights_after=arguments.nights_after or (2.0 if arguments.quick else 3.5),
        item_lifetime_hours=arguments.lifetime,
        strength=arguments.strength,
    )


def show(report: Report, race: Race) -> None:
    lines, levels, end = race.best_lines(), race.levels(), race.scenario.last_window
    living_former = levels[Living.INDEX].former
    rows = []
    for key, name in KEYS.items():
        level = levels[name]
        figures = {
            "former": level.former,
            **level.over_former(),
            "recovery_events": race.events_until(level.back_at),
            "over_living_former": level.best_day / living_former,
            "share_scored": lines[name].share_scored(-WINDOWS_PER_DAY, end),
        }
        rows.append((name, *figures.values()))
        report.figures(**{f"{key}_{figure}": value for figure, value in figures.items()})
    columns = (
        *("contender", "day before", "lowest", "first day", "best day", "last day"),
        *("events until back", "best day over living before", "share scored"),
    )
    report.figures(events_trained=race.events.total())
    report.table("recall, and the levels after the change over the day before it", columns, rows)


if __name__ == "__main__":
    main()
