"""What a drifting world is made of, and the names of the features it shows."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, Field, model_validator

from consumers.errors import ConfigError

TOP_TOPIC: Final = "top_topic"
SUBTOPIC: Final = "subtopic"
BRAND: Final = "brand"
PRICE: Final = "price"
TITLE: Final = "title"
SEGMENT: Final = "segment"
DEVICE: Final = "device"
HOUR_BAND: Final = "hour_band"
SURFACE: Final = "surface"

CLICK: Final = "click"
IMPRESSION: Final = "impression"

HOUR_BANDS: Final = ("night", "morning", "afternoon", "evening")
SURFACES: Final = ("home", "detail", "mail")
DEVICES: Final = ("phone", "desktop", "tablet")


class TasteConfig(BaseModel, extra="forbid", frozen=True):
    """How much each part of the utility weighs, in units of utility (see ``taste.py`` for the formula)."""

    subtopic: float = Field(default=2.0, description="The item is of the subtopic that an interest asks for.")
    topic: float = Field(default=1.0, description="The item is of the same top topic.")
    topic_and_brand: float = Field(
        default=2.5, description="The item is of that top topic *and* of the interest's brand."
    )
    style: float = Field(
        default=0.7, description="Cosine of the interest's style and the item's hidden vector."
    )
    gate: float = Field(
        default=1.2, description="Spread of the push that hour band and surface give a topic's interests."
    )
    price: float = Field(default=2.5, description="Height of the bell around the user's budget.")
    price_width: float = Field(
        default=0.35, gt=0, description="Width of that bell, in natural log of the price."
    )
    parity: float = Field(
        default=0.6, description="Product of the signs of brand, subtopic and segment: no two of them tell."
    )
    quality: float = Field(default=0.3, description="The item's hidden quality.")
    appeal: float = Field(
        default=0.4, description="The current appeal of the item's top topic, equal for all users."
    )
    saturation: float = Field(
        default=0.5, ge=0, description="Loss per log(1 + recent exposures to the subtopic)."
    )
    sharpness: float = Field(
        default=0.25, gt=0, description="Temperature of the log-sum-exp over interests; small = max."
    )


class WorldConfig(BaseModel, extra="forbid", frozen=True):
    """A world. The same values give the same bytes, on one machine and one set of library versions."""

    seed: int = Field(default=1, ge=0, description="All randomness comes from it.")
    num_users: int = Field(default=10_000, ge=1)
    num_items: int = Field(default=20_000, ge=1, description="Items alive when the stream starts.")
    num_top_topics: int = Field(default=20, ge=2)
    subtopics_per_topic: int = Field(default=12, ge=1)
    num_brands: int = Field(default=80, ge=1)
    brands_per_topic: int = Field(
        default=16, ge=1, description="How many of the brands sell in one top topic."
    )
    num_segments: int = Field(default=8, ge=1)
    interests_per_user: int = Field(default=4, ge=1)
    style_dim: int = Field(default=8, ge=2, description="Size of the hidden style vectors.")
    tastes: TasteConfig = Field(default_factory=TasteConfig)

    births_per_1k_events: float = Field(
        default=2.0, ge=0, description="New items for every 1,000 impressions shown."
    )
    item_lifetime_hours: float = Field(
        default=550.0, gt=0, description="Mean life of an item, in stream time."
    )
    popularity_tail: float = Field(
        default=1.4, gt=1, description="Exponent of the Pareto tail of popularity; near 1 is heaviest."
    )
    interest_drift_per_day: float = Field(
        default=0.05, ge=0, description="Share of all interests replaced in a day of stream time."
    )
    item_drift_per_day: float = Field(
        default=0.2, ge=0, description="Mean turn of the hidden vectors, in radians a day."
    )
    regime_at_events: tuple[int, ...] = Field(
        default=(), description="Sudden changes once so many impressions were shown."
    )
    regime_every_events: int | None = Field(
        default=None, ge=1, description="A sudden change after every so many impressions."
    )
    regime_strength: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of users who change interests, and of topics that swap appeal.",
    )

    popular_slots: int = Field(default=4, ge=0, description="Items in a slate drawn by popularity.")
    relevant_slots: int = Field(default=4, ge=0, description="Items in a slate chosen by noisy utility.")
    explored_slots: int = Field(default=2, ge=0, description="Items in a slate drawn uniformly.")
    relevance_pool: int = Field(default=4, ge=1, description="Candidates that compete for one relevant slot.")
    relevance_noise: float = Field(default=1.0, ge=0, description="Standard deviation of the ranker's error.")
    saturation_hours: float = Field(default=12.0, gt=0, description="Time in which exposures fade to 1/e.")

    start_ms: int = Field(
        default=1_767_225_600_000, ge=0, description="First event time; default 2026-01-01 UTC."
    )
    events_per_second: float = Field(default=5.0, gt=0, description="Impressions per second of stream time.")
    click_rate: float = Field(
        default=0.1, gt=0, lt=1, description="Click rate that the first slates are tuned to."
    )
    noise: float = Field(
        default=0.7, gt=0, description="Temperature of clicks; small = users who always know what they like."
    )
    positives_only: bool = Field(default=False, description="Leave out impressions without a click.")

    @property
    def slate_size(self) -> int:
        return self.popular_slots + self.relevant_slots + self.explored_slots

    @property
    def num_subtopics(self) -> int:
        return self.num_top_topics * self.subtopics_per_topic

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slate_size < 1:
            raise ConfigError(
                "popular_slots, relevant_slots and explored_slots are all 0: a slate needs at least one item"
            )
        if self.brands_per_topic > self.num_brands:
            raise ConfigError(
                f"brands_per_topic is {self.brands_per_topic}, more than num_brands ({self.num_brands})"
            )
        return self
