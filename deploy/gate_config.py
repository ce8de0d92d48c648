"""Settings of the gate, apart from it: reading a configuration need not import MLflow or PyTorch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GateMode = Literal["trial", "window", "off"]


class GuardrailConfig(BaseModel):
    """What a version must hold whatever its recall is; one that does not is refused and the reason names
    each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_recall: float = Field(0.0, ge=0, le=1, description="Recall through the index must be above this")
    min_of_flat: float = Field(
        0.8, ge=0, le=1, description="What recall through the index must be of flat recall on the same events"
    )
    max_group_drop: float = Field(
        0.1,
        gt=0,
        description="Most that recall on new items, on known items, or on the items of one value of "
        "`by_item_feature` may drop, as a share of the champion's; a drop counts once noise "
        "cannot explain it",
    )
    min_group_events: int = Field(
        100, ge=10, description="Answered events before a group of items is looked at"
    )
    new_item_hours: float = Field(
        24.0, gt=0, description="Age up to which an item counts as new, in hours of the stream's time"
    )
    by_item_feature: str | None = Field(
        None, description="Categorical item feature whose every value is a group; null looks at age alone"
    )
    max_ne_rise: float = Field(
        0.05,
        gt=0,
        description="Most that the log-loss of predicted clicks may rise, as a share of the champion's; a "
        "rise counts once noise cannot explain it",
    )
    min_calibration: float = Field(
        0.5, ge=0, description="Predicted over observed clicks, at least; where the log has both labels"
    )
    max_calibration: float = Field(2.0, gt=0, description="Predicted over observed clicks, at most")
    max_over_mean: float = Field(
        50.0, gt=1, description="Most items in a node of the first level, as a multiple of the mean node"
    )
    max_churn: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest share of the items of both versions that may be in another leaf; null only "
        "reports it",
    )

    @model_validator(mode="after")
    def _calibration_is_a_band(self) -> Self:
        if self.min_calibration >= self.max_calibration:
            raise ValueError("min_calibration must be below max_calibration")
        return self


class GateConfig(BaseModel):
    """Which versions become champion by themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: GateMode = Field(
        "trial",
        description="trial: champion and candidate answer the same events before they are learnt, which "
        "takes the memory of two more copies of what serves (the state without the optimizer, and the index "
        "once more). window: each version's own figures, of different events, and no copies. off: people "
        "promote",
    )
    min_events: int = Field(
        1_000,
        ge=50,
        description="Answered events at the first look at a trial; looks follow at each doubling. With fewer "
        "a trial stays undecided",
    )
    max_events: int = Field(
        8_000,
        ge=50,
        description="Answered events at the last look; one that has not convinced is refused",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="How often a version may be promoted that loses more than the margin, over all looks at "
        "its trial; also how often one that is no worse may be called back",
    )
    margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="What a run of promotions may lose in all, as a share of the champion's recall. As long "
        "as nothing was lost a version may be worse by so much; what was lost is taken off until later "
        "versions win it back. With 0 each one must be better",
    )
    probation: bool = Field(
        True,
        description="Compare a new champion with the one before it on the events that follow, and call it "
        "back if it is worse",
    )
    max_share: float = Field(
        0.2, gt=0, le=1, description="Share of one core's time that answering may take while training goes on"
    )
    events_per_batch: int = Field(
        64, ge=1, description="Positive events of a batch that are answered at most"
    )
    max_waiting: int = Field(
        32, ge=1, description="Batches that wait to be answered; further ones are left out of the trial"
    )
    flat_scores: float = Field(
        2.5e5,
        gt=0,
        description="Scores of the flat comparison paid a batch and version: with more items than this over "
        "`events_per_batch`, flat recall is measured on fewer events",
    )
    guardrails: GuardrailConfig = Field(default_factory=GuardrailConfig)

    @model_validator(mode="after")
    def _looks_are_in_order(self) -> Self:
        if self.max_events < self.min_events:
            raise ValueError("max_events must be at least min_events")
        return self
