from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import ConfigError, DataError
from pipeline.simulator import Context, Step, TasteConfig, World, WorldConfig
from pipeline.simulator.config import HOUR_BANDS, SURFACES
from pipeline.simulator.files import write_parquet
from pipeline.simulator.picture import overlap

SMALL = WorldConfig(
    seed=7,
    num_users=300,
    num_items=1_500,
    num_top_topics=6,
    subtopics_per_topic=5,
    num_brands=20,
    brands_per_topic=8,
    births_per_1k_events=20,
    item_lifetime_hours=10,
    interest_drift_per_day=0.2,
    events_per_second=1,
)


def steps_of(config: WorldConfig, num_events: int, chunk: int = 2_000) -> list[Step]:
    return list(World(config).stream(num_events, chunk))


def table_of(steps: list[Step], part: str = "events") -> pa.Table:
    return pa.Table.from_batches([getattr(step, part) for step in steps]).combine_chunks()


@cache
def small_steps() -> tuple[Step, ...]:
    return tuple(steps_of(SMALL, 30_000))


def all_bytes(steps: list[Step]) -> tuple[Any, ...]:
    """Events, births and deaths, and after how many events each birth and death comes."""
    before, marks = 0, []
    for step in steps:
        if step.born.num_rows or len(step.died):
            marks.append((before, step.time_ms, step.born.num_rows, step.died.tolist()))
        before += step.events.num_rows
    streams = [pa.BufferOutputStream() for _ in range(2)]
    for sink, part in zip(streams, ("events", "born"), strict=True):
        table = table_of(steps, part)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return marks, *(sink.getvalue().to_pybytes() for sink in streams)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    first = all_bytes(steps_of(SMALL, 6_000))
    assert first == all_bytes(steps_of(SMALL, 6_000))
    assert first[1] != all_bytes(steps_of(SMALL.model_copy(update={"seed": 8}), 6_000))[1]


@settings(deadline=None, max_examples=12)
@given(chunk=st.integers(41, 5_000), pause=st.integers(1, 6_999))
def test_the_stream_never_depends_on_how_it_is_cut(chunk: int, pause: int) -> None:
    world = World(SMALL)
    steps = [*world.stream(pause, chunk), *world.stream(7_000 - pause, chunk)]
    assert max(step.events.num_rows for step in steps) <= chunk
    assert all_bytes(steps) == all_bytes(list(small_whole()))


@cache
def small_whole() -> tuple[Step, ...]:
    return tuple(steps_of(SMALL, 7_000))


def test_asking_for_the_truth_does_not_change_the_stream() -> None:
    world, steps = World(SMALL), []
    for step in world.stream(7_000):
        steps.append(step)
        world.true_best_items([1, 2, 3], 5)
    assert all_bytes(steps) == all_bytes(list(small_whole()))


def test_no_event_names_an_item_before_its_birth_or_after_its_death() -> None:
    alive: set[int] = set()
    born = died = 0
    for step in small_steps():
        alive |= set(step.born["item_id"].to_pylist())
        alive -= set(step.died.tolist())
        assert set(step.events["item_id"].to_pylist()) <= alive
        born, died = born + step.born.num_rows, died + len(step.died)
    assert born > SMALL.num_items + 300
    assert died > 300


def test_the_first_step_carries_the_whole_catalogue_and_ids_are_never_reused() -> None:
    assert small_steps()[0].born.num_rows == SMALL.num_items
    ids = table_of(list(small_steps()), "born")["item_id"].to_numpy()
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))


def test_time_never_runs_backwards_and_hour_bands_follow_the_clock() -> None:
    steps = steps_of(SMALL.model_copy(update={"events_per_second": 0.3}), 30_000)
    table = table_of(steps)
    times = table["event_time"].to_numpy()
    assert (np.diff(times) >= 0).all()
    expected = [HOUR_BANDS[hour // 6] for hour in (times // 3_600_000 % 24).tolist()]
    assert table["hour_band"].to_pylist() == expected
    assert set(expected) == set(HOUR_BANDS)
    for step in steps:
        assert step.time_ms <= step.events["event_time"][0].as_py()


def test_live_items_are_those_born_and_not_dead() -> None:
    world = World(SMALL)
    steps = list(world.stream(10_000))
    dead = np.concatenate([step.died for step in steps])
    born = table_of(steps, "born")["item_id"].to_numpy()
    np.testing.assert_array_equal(world.live_item_ids(), np.setdiff1d(born, dead))


# Truth -----------------------------------------------------------------------------------------------


def utility_by_hand(world: World, user_id: int, item_id: int, hour: int, surface: int) -> float:
    """The formula of docs/simulator.md, one pair at a time, in plain floats."""
    state, tastes = world._state, world.config.tastes
    u, i, per_topic = user_id - 1, item_id - 1, world.config.subtopics_per_topic
    traits, tables, users = state.items.traits, state.tables, state.users
    sub, brand = int(traits.subtopic[i]), int(traits.brand[i])
    angle = traits.turn_per_day[i] * (state.now_ms - state.items.born_ms[i]) / 86_400_000
    style = math.cos(angle) * traits.style_from[i] + math.sin(angle) * traits.style_to[i]
    pulls = []
    for k in range(world.config.interests_per_user):
        wanted = int(users.interests.subtopic[u, k])
        topic = wanted // per_topic
        pull = (
            users.interests.weight[u, k] + tables.hour_gate[topic, hour] + tables.surface_gate[topic, surface]
        )
        pull += tastes.subtopic * (sub == wanted)
        if sub // per_topic == topic:
            pull += tastes.topic + tastes.topic_and_brand * (brand == users.interests.brand[u, k])
        pulls.append(float(pull + tastes.style * users.interests.style[u, k] @ style))
    best = tastes.sharpness * math.log(sum(math.exp(pull / tastes.sharpness) for pull in pulls))
    signs = tables.brand_sign[brand] * tables.subtopic_sign[sub] * tables.segment_sign[users.segment[u]]
    off = (traits.price_offset[i] - users.budget[u]) / tastes.price_width
    age_hours = (state.now_ms - users._exposures_ms[u]) / 3_600_000
    seen = users._exposures[u, sub] * math.exp(-age_hours / world.config.saturation_hours)
    return float(
        tastes.quality * traits.quality[i]
        + tastes.appeal * tables.appeal[sub // per_topic]
        + tastes.parity * signs
        + tastes.price * math.exp(-(off**2) / 2)
        + best
        - tastes.saturation * math.log1p(seen)
    )


def test_true_utility_is_the_documented_formula() -> None:
    world = World(SMALL.model_copy(update={"regime_every_events": 6_000}))
    list(world.stream(10_000))
    assert world.regime_changes == 1
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 301, 60), rng.choice(world.live_item_ids(), (60, 5))
    hours, surfaces = rng.integers(4, size=60), rng.integers(3, size=60)
    context = Context([HOUR_BANDS[h] for h in hours], [SURFACES[s] for s in surfaces])
    expected = [
        [utility_by_hand(world, users[n], item, hours[n], surfaces[n]) for item in items[n]]
        for n in range(60)
    ]
    np.testing.assert_allclose(world.true_utility(users, items, context), expected, atol=2e-5)


def test_true_best_items_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(SMALL)
    list(world.stream(8_000))
    monkeypatch.setattr("pipeline.simulator.world.PAIRS_AT_ONCE", 20_000)  # several slices
    users, live = np.arange(1, 31), world.live_item_ids()
    context = Context("morning", "mail")
    best = world.true_best_items(users, 20, context)
    everything = world.true_utility(users, np.tile(live, (30, 1)), context)
    expected = live[np.argsort(-everything, axis=1, kind="stable")[:, :20]]
    np.testing.assert_allclose(
        world.true_utility(users, best, context), world.true_utility(users, expected, context), atol=1e-5
    )
    assert (best == expected).mean() > 0.99  # the rest are ties in the last bit of a float


def test_without_a_context_the_truth_is_that_of_the_present_hour() -> None:
    world = World(SMALL)
    list(world.stream(36_000))  # ten hours
    users = np.arange(1, 21)
    now = world.true_best_items(users, 10)
    np.testing.assert_array_equal(now, world.true_best_items(users, 10, Context("morning", "home")))
    assert (now != world.true_best_items(users, 10, Context("evening", "home"))).any()


def test_a_regime_change_breaks_the_old_truth_and_calm_does_not() -> None:
    def overlap_across_block(config: WorldConfig) -> float:
        world, users = World(config), np.arange(1, 101)
        list(world.stream(4_000))
        before = world.true_best_items(users, 50, Context("evening"), saturated=False)
        list(world.stream(2_000))
        return overlap(before, world.true_best_items(users, 50, Context("evening"), saturated=False))

    calm = overlap_across_block(SMALL)
    shaken = overlap_across_block(SMALL.model_copy(update={"regime_at_events": (4_000,)}))
    assert calm > 0.85
    assert shaken < calm - 0.25


def test_items_drift_even_when_nothing_else_moves() -> None:
    still = {"births_per_1k_events": 0, "item_lifetime_hours": 1e6, "interest_drift_per_day": 0}
    users = np.arange(1, 51)

    def kept(turn: float) -> float:
        world = World(
            SMALL.model_copy(update={**still, "item_drift_per_day": turn, "events_per_second": 0.05})
        )
        before = world.true_best_items(users, 50, Context("evening"), saturated=False)
        list(world.stream(8_000))
        return overlap(before, world.true_best_items(users, 50, Context("evening"), saturated=False))

    assert kept(0.0) == 1.0
    assert kept(0.5) < 0.95


def test_seeing_a_subtopic_again_and_again_lowers_it_and_time_heals() -> None:
    world = World(SMALL)
    list(world.stream(2_000))
    state = world._state
    item = int(world.live_item_ids()[0])
    context = Context("evening")
    fresh = world.true_utility([5], [item], context, saturated=False)
    rested = world.true_utility([5], [item], context)
    state.users.expose(
        np.array([4, 4]), np.full((2, 10), state.items.traits.subtopic[item - 1]), state.now_ms
    )
    tired = world.true_utility([5], [item], context)
    state.now_ms += 1_000 * 3_600_000
    healed = world.true_utility([5], [item], context) - world.true_utility(
        [5], [item], context, saturated=False
    )
    assert fresh >= rested > tired + 0.5
    assert abs(healed[0]) < 1e-5


# Behaviour of users ----------------------------------------------------------------------------------


def test_clicks_happen_as_often_as_their_utility_says() -> None:
    world = World(WorldConfig(seed=3, num_users=2_000, num_items=3_000, tastes=TasteConfig(saturation=0.0)))
    chances, clicks = [], []
    for step in world.stream(60_000):
        events = step.events
        context = Context(events["hour_band"].to_pylist(), events["surface"].to_pylist())
        utilities = world.true_utility(events["user_id"].to_numpy(), events["item_id"].to_numpy(), context)
        chances.append(world.click_probability(utilities))
        clicks.append(events["event_type"].to_numpy(zero_copy_only=False) == "click")
    chance, click = np.concatenate(chances), np.concatenate(clicks)
    order = np.argsort(chance)
    for part in np.array_split(order, 10):
        spread = math.sqrt((chance[part] * (1 - chance[part])).sum()) / len(part)
        assert abs(click[part].mean() - chance[part].mean()) < 4 * spread + 1e-4
    assert 0.05 < click.mean() < 0.15


def test_the_click_rate_is_tuned_to_what_was_asked() -> None:
    for rate in (0.03, 0.3):
        config = SMALL.model_copy(update={"click_rate": rate, "tastes": TasteConfig(saturation=0.0)})
        types = table_of(steps_of(config, 20_000))["event_type"].to_pylist()
        assert abs(types.count("click") / len(types) - rate) < 0.35 * rate


def test_positives_only_leaves_out_impressions_and_nothing_else() -> None:
    whole = table_of(list(small_steps()))
    clicks = whole.filter(pa.compute.equal(whole["event_type"], "click"))
    only = table_of(steps_of(SMALL.model_copy(update={"positives_only": True}), clicks.num_rows))
    assert only.equals(clicks)


def test_a_slate_shows_each_item_once_and_a_few_items_get_much_of_the_traffic() -> None:
    config = WorldConfig(num_users=2_000, num_items=5_000, births_per_1k_events=0)
    items = table_of(steps_of(config, 60_000))["item_id"].to_numpy()
    slates = np.sort(items.reshape(-1, config.slate_size), axis=1)
    assert (slates[:, 1:] == slates[:, :-1]).mean() < 1e-3
    counts = np.sort(np.bincount(items))[::-1]
    assert 0.1 < counts[:50].sum() / counts.sum() < 0.6


# Features, files, errors -----------------------------------------------------------------------------


def test_features_say_what_the_item_is() -> None:
    born = small_steps()[0].born.to_pylist()
    brands_by_word: dict[str, set[str]] = {}
    for item in born:
        assert int(item["subtopic"].split("-")[1]) // 5 == int(item["top_topic"].split("-")[1])
        assert item["price"] > 0
        words = item["title"].split()
        assert len(words) == 5
        brands_by_word.setdefault(words[0], set()).add(item["brand"])
    assert all(len(brands) == 1 for brands in brands_by_word.values())
    assert len(brands_by_word) == len({item["brand"] for item in born})


def test_users_have_the_declared_features() -> None:
    users = World(SMALL).users()
    assert users.schema.names == ["user_id", "segment", "device"]
    assert users["user_id"].to_pylist() == list(range(1, 301))
    assert len(set(users["segment"].to_pylist())) == SMALL.num_segments


def test_parquet_files_hold_the_stream_the_lives_and_the_truth(tmp_path: Path) -> None:
    world = World(SMALL)
    write_parquet(world, 12_345, tmp_path, truth_times=3, truth_users=20, truth_k=10)
    events, items, users, truth = (
        pq.read_table(tmp_path / f"{name}.parquet") for name in ("events", "items", "users", "truth")
    )
    expected = table_of(steps_of(SMALL, 12_345))
    assert events.schema.names[:3] == ["user_id", "item_id", "timestamp_ms"]
    assert events.rename_columns(expected.schema.names).equals(expected)
    assert users.num_rows == SMALL.num_users
    alive = items.filter(pa.compute.is_null(items["died_ms"]))["item_id"].to_numpy()
    np.testing.assert_array_equal(alive, world.live_item_ids())
    lives = items.take(pa.array(events["item_id"].to_numpy() - 1))
    times = events["timestamp_ms"].to_numpy()
    assert (lives["born_ms"].to_numpy() <= times).all()
    assert (lives["died_ms"].fill_null(2**62).to_numpy() > times).all()
    last = truth.filter(pa.compute.equal(truth["timestamp_ms"], world.now_ms))
    assert (truth.num_rows, last.num_rows) == (600, 200)
    first_user = last.slice(0, 10)
    context = Context(first_user["hour_band"][0].as_py(), first_user["surface"][0].as_py())
    best = world.true_best_items([first_user["user_id"][0].as_py()], 10, context)
    np.testing.assert_array_equal(first_user["item_id"].to_numpy(), best[0])


def test_a_world_that_has_moved_is_not_written(tmp_path: Path) -> None:
    world = World(SMALL)
    list(world.stream(10))
    with pytest.raises(ValueError, match="fresh world"):
        write_parquet(world, 10, tmp_path)


def test_unknown_ids_and_contexts_are_named() -> None:
    world = World(SMALL)
    with pytest.raises(DataError, match="user_id 301 is unknown"):
        world.true_best_items([301], 5)
    with pytest.raises(DataError, match="item_id 0 is unknown"):
        world.true_utility([1], [0])
    with pytest.raises(DataError, match="surface"):
        world.true_best_items([1], 5, Context("night", "cinema"))
    with pytest.raises(DataError, match="k must be between 1 and"):
        world.true_best_items([1], 1_501)


def test_settings_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="popular_slots"):
        WorldConfig(popular_slots=0, relevant_slots=0, explored_slots=0)
    with pytest.raises(ConfigError, match="brands_per_topic"):
        WorldConfig(num_brands=5, brands_per_topic=6)


def test_a_world_smaller_than_its_slates_goes_on() -> None:
    tiny = WorldConfig(num_users=1, num_items=3, births_per_1k_events=0, item_lifetime_hours=0.01)
    world = World(tiny)
    assert table_of(list(world.stream(8_000))).num_rows == 8_000
    assert len(world.live_item_ids()) == 1
