"""A trial: two versions answer a sample of the events that came after both, and what differs is gathered.

"Score the shard with the served model, then learn it": neither version learnt the events that it is asked
about, whichever of them is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from consumers import columns as c
from consumers.batch import EventBatch
from deploy.gate import GateResult, Look, Verdict, judge, judge_probation, next_look
from deploy.gate_config import GateConfig
from deploy.gate_outcomes import NOTHING, Clicks, Hits, Outcomes, bursts
from deploy.gate_statistics import Int64s, Looks
from deploy.trial_contender import Answers, Contender, overlap
from trainers.manifest import Manifest

# Clicks are cheap to predict beside a search; more of them than this a batch say little.
_CLICKS_PER_BATCH = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of one batch, copied, so that the batch itself may go."""

    positive: pa.RecordBatch
    """To be searched for."""
    any_label: pa.RecordBatch | None
    """To predict clicks of; None where the batch has no both labels."""
    num_trained: int
    """Events that the stream's own lineage had trained before the batch."""
    lineage: str

    @classmethod
    def of(cls, batch: EventBatch, num_trained: int, lineage: str, max_positive: int) -> Sample:
        """Evenly spaced rows, so that a part of a batch stands for all of it."""
        positive_B = batch.table.column(c.LABEL).to_numpy() > 0
        has_both = positive_B.any() and not positive_B.all()
        positive = _spread(batch.table, np.flatnonzero(positive_B), max_positive)
        any_label = _spread(batch.table, np.arange(len(batch)), _CLICKS_PER_BATCH) if has_both else None
        return cls(positive, any_label, num_trained, lineage)

    def unseen_by(self, manifests: list[Manifest]) -> Sample:
        """The events that none of these states has learnt: of its own lineage those before it, of another
        one those that are not younger than all that it learnt."""
        return Sample(
            self._unseen(self.positive, manifests),
            None if self.any_label is None else self._unseen(self.any_label, manifests),
            self.num_trained,
            self.lineage,
        )

    def _unseen(self, events: pa.RecordBatch, manifests: list[Manifest]) -> pa.RecordBatch:
        times_ms = events.column(c.EVENT_TIME).to_numpy()
        unseen = np.ones(len(times_ms), dtype=np.bool_)
        for manifest in manifests:
            if self.lineage and self.lineage == manifest.lineage:
                unseen &= self.num_trained >= manifest.events_trained
            else:
                unseen &= times_ms > manifest.watermark_ms
        return events if unseen.all() else events.filter(pa.array(unseen))


def _spread(table: pa.RecordBatch, rows: np.ndarray, count: int) -> pa.RecordBatch:
    if len(rows) > count:
        rows = rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
    return table.take(pa.array(rows))


def cut_short(num_events: int, min_events: int, ended: bool, probation: bool = False) -> Verdict:
    """The verdict after too few events, where the stream ended or the life of the process did."""
    end = "the stream ended" if ended else "this life ended"
    asked = f"after {num_events:,} answered events, and {min_events:,} are asked for"
    if probation:
        reason = f"On probation until {end}, {asked}."
    elif ended:
        reason = f"Undecided: {end} {asked}. `hsnn gate --from LOG` judges it on a log."
    else:
        reason = f"Undecided: {end} {asked}; the next life goes on with the newest version that waits."
    return Verdict(GateResult.PENDING, reason)


class Trial:
    """What two versions made of the same events so far.

    Args:
        reference: the champion, or on probation the one before it.
        candidate: what is judged.
        drawdown: the reference's, as its tag says.
        probation: the candidate serves already, and may be called back.
    """

    def __init__(
        self,
        reference: Contender,
        candidate: Contender,
        config: GateConfig,
        *,
        drawdown: float = 0.0,
        probation: bool = False,
    ) -> None:
        self.reference, self.candidate = reference, candidate
        self.config, self.drawdown, self.probation = config, drawdown, probation
        self._looks = Looks.of(config.min_events, config.max_events, config.alpha)
        self._taken = 0
        self._parts: list[Outcomes] = []
        self.num_events = 0
        """Answered so far."""
        self.last = Verdict(GateResult.PENDING, "")
        """Of the look before."""

    def answer(self, sample: Sample) -> None:
        """Ask both versions about the events of a sample that neither learnt."""
        unseen = sample.unseen_by([self.reference.manifest, self.candidate.manifest])
        hits = self._hits(unseen.positive) if unseen.positive.num_rows else NOTHING.hits
        clicks = self._clicks(unseen.any_label)
        self._parts.append(Outcomes(hits, clicks))
        self.num_events += len(hits)

    def look(self, ended: bool = False) -> Verdict | None:
        """The verdict of the look that is due, if one is.

        Args:
            ended: no further event will come.
        """
        due = next_look(self._looks, self._taken, self.num_events, ended)
        if due is None:
            return None
        self._taken = sum(events <= self.num_events for events in self._looks.at)
        self.last = self._judge(due)
        return self.last

    def cut_short(self, ended: bool) -> Verdict:
        """The verdict where no event comes any more and there are too few for a last look."""
        return cut_short(self.num_events, self.config.min_events, ended, self.probation)

    @property
    def outcomes(self) -> Outcomes:
        self._parts = [Outcomes.joined(self._parts)]
        return self._parts[0]

    def _judge(self, due: Look) -> Verdict:
        feature = self.config.guardrails.by_item_feature
        names = partial(self.candidate.name_of_group, feature) if feature else str
        if self.probation:
            return judge_probation(self.outcomes, due, self.config, names)
        return judge(self.outcomes, due, self.config, self.drawdown, names)

    def _hits(self, events: pa.RecordBatch) -> Hits:
        both = [self._answers(contender, events) for contender in (self.reference, self.candidate)]
        reference, candidate = both
        rails = self.config.guardrails
        return Hits(
            users_N=events.column(c.USER_ID).to_numpy(),
            bursts_N=self._bursts(events),
            reference_N=reference.hit_B,
            candidate_N=candidate.hit_B,
            reference_flat_N=reference.flat_hit_B,
            candidate_flat_N=candidate.flat_hit_B,
            overlap_N=overlap(candidate.ids_Bk, reference.ids_Bk),
            is_new_N=self.candidate.are_new(events, rails.new_item_hours),
            group_N=self.candidate.groups(events, rails.by_item_feature),
        )

    def _answers(self, contender: Contender, events: pa.RecordBatch) -> Answers:
        # The candidate's k for both: recall over other numbers of answers is another figure.
        return contender.answer(events, self.candidate.k, self.config.flat_scores)

    def _bursts(self, events: pa.RecordBatch) -> Int64s:
        return bursts(events.column(c.ITEM_ID).to_numpy(), self.num_events // self.config.min_events)

    def _clicks(self, events: pa.RecordBatch | None) -> Clicks:
        if events is None or not events.num_rows:
            return NOTHING.clicks
        return Clicks(
            users_M=events.column(c.USER_ID).to_numpy(),
            bursts_M=self._bursts(events),
            label_M=(events.column(c.LABEL).to_numpy() > 0).astype(np.float64),
            reference_M=self.reference.click_probabilities(events),
            candidate_M=self.candidate.click_probabilities(events),
        )
