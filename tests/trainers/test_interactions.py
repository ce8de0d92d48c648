from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import COLOUR, DEVICE, FEATURED, PRICE, TAGS, events, items_batch

from consumers import columns as c
from consumers.batch import EntityKind
from consumers.errors import ConfigError
from consumers.schema import Feature, FeatureKind
from trainers.interactions import (
    NUMBERS_A_PAIR,
    RECENCY_PLACES,
    Interaction,
    Interests,
    _weigh,
    item_keys,
    value_keys,
)
from trainers.matches import InvertedIndex, Matches
from trainers.trainer import FeatureSets, OnlineTrainer

HISTORY_ITEM = Interaction(user="history", item=c.ITEM_ID)
HISTORY_COLOUR = Interaction(user="history", item="colour")
HISTORY_TAGS = Interaction(user="history", item="tags")
TASTE = Feature(name="taste", kind=FeatureKind.MULTI)


def trainer_with(
    *interactions: Interaction, user: Sequence[Feature] = (), context: Sequence[Feature] = ()
) -> OnlineTrainer:
    features = FeatureSets((COLOUR, PRICE, TAGS), tuple(user), tuple(context), interactions)
    return OnlineTrainer(FEATURED.trainer, features)


def described(trainer: OnlineTrainer) -> OnlineTrainer:
    """Items 1 to 4: two red, one blue, one without a colour; tags of two of them."""
    values = {
        "colour": pa.array(["red", "red", "blue", None]),
        "price": pa.array([None] * 4, pa.float64()),
        "tags": pa.array([["a", "b"], ["b"], [], None], pa.list_(pa.string())),
    }
    trainer.apply_entities(items_batch([1, 2, 3, 4], (COLOUR, PRICE, TAGS), values))
    return trainer


def features_after(trainer: OnlineTrainer, liked: Sequence[int]) -> np.ndarray:
    """Interaction features [X, 4] of user 7 with items 1 to 4, after events with ``liked``."""
    trainer.learn(events([7] * len(liked), liked))
    request = trainer.request(events([7], [1], start=100).table)
    interests, _ = trainer.look_for(request)
    found = trainer.matches(interests, torch.from_numpy(trainer.items.find(np.arange(1, 5))))
    assert found is not None
    return found.features()[0].numpy()


def naive_features(
    keys_BJ: np.ndarray, pairs_J: np.ndarray, recency_J: np.ndarray, values: list[list[int]]
) -> np.ndarray:
    """As the module's text says, pair by pair and value by value."""
    found = np.zeros((len(keys_BJ), NUMBERS_A_PAIR * (int(pairs_J.max()) + 1), len(values)))
    for b, keys in enumerate(keys_BJ.tolist()):
        for pair in range(int(pairs_J.max()) + 1):
            places = [j for j in range(len(keys)) if pairs_J[j] == pair and keys[j]]
            for candidate, carried in enumerate(values):
                for value in filter(None, carried):
                    met = [j for j in places if keys[j] == value]
                    if met:
                        matched = [1.0, len(met) / len(places), recency_J[met[0]]]
                        found[b, 3 * pair : 3 * pair + 3, candidate] += matched
    return found


def interests_of(
    keys_BJ: np.ndarray, widths: Sequence[int], recency_J: np.ndarray
) -> tuple[Interests, np.ndarray]:
    pairs_J, own_BJ = np.repeat(np.arange(len(widths)), widths), keys_BJ.copy()
    weights = np.zeros((*keys_BJ.shape, 3), dtype=np.float32)
    _weigh(own_BJ, np.cumsum(widths), recency_J, weights)
    return Interests(torch.from_numpy(own_BJ), torch.from_numpy(weights), pairs_J), pairs_J


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Matches, np.ndarray]:
    """Users and candidates, and their features by a comparison of all with all."""
    num_users, num_candidates = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    key = st.integers(0, 6)
    keys_BJ = np.array(
        [draw(st.lists(key, min_size=sum(widths), max_size=sum(widths))) for _ in range(num_users)]
    )
    values = [draw(st.lists(key, min_size=2, max_size=2)) for _ in range(num_candidates)]
    recency_J = np.concatenate([0.5 ** np.arange(width) for width in widths]).astype(np.float32)
    interests, pairs_J = interests_of(keys_BJ, widths, recency_J)
    expected = naive_features(keys_BJ, pairs_J, recency_J, values)
    return InvertedIndex(np.array(values)).matches(interests), expected


@given(worlds())
def test_posting_lists_find_what_a_comparison_of_all_with_all_finds(
    world: tuple[Matches, np.ndarray],
) -> None:
    matches, expected = world
    np.testing.assert_allclose(matches.features().numpy(), expected, atol=1e-5)


@given(worlds(), st.integers(0, 2**31))
def test_matches_count_in_scores_and_gradients_as_if_they_were_written_down(
    world: tuple[Matches, np.ndarray], seed: int
) -> None:
    matches, expected = world
    random = torch.Generator().manual_seed(seed)
    features_BXC = torch.from_numpy(expected).float()
    num_users, num_features, num_candidates = features_BXC.shape

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    products, crosses = drawn(num_users, 3, num_candidates), drawn(num_users, 3, num_features)
    weights = drawn(num_users, 3, num_candidates)
    results = []
    for is_sparse in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in (products, crosses)]
        fresh = inputs[0] * 1.0
        added = matches.added_to(fresh, inputs[1]) if is_sparse else fresh + inputs[1] @ features_BXC
        (added * weights).sum().backward()
        results.append([added.detach(), *(tensor.grad for tensor in inputs)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@given(worlds(), st.data())
def test_the_features_of_a_users_own_candidate_and_of_some_users_are_parts_of_all(
    world: tuple[Matches, np.ndarray], data: st.DataObject
) -> None:
    matches, expected = world
    num_users, _, num_candidates = expected.shape
    places = st.lists(st.integers(0, num_candidates - 1), min_size=num_users, max_size=num_users)
    own_B = torch.tensor(data.draw(places))
    own = matches.of_own(own_B).squeeze(2).numpy()
    np.testing.assert_allclose(own, expected[np.arange(num_users), :, own_B.numpy()], atol=1e-5)
    some = torch.tensor(data.draw(st.lists(st.integers(0, num_users - 1), min_size=1, max_size=5)))
    np.testing.assert_allclose(matches.select(some).features(), expected[some.numpy()], atol=1e-5)


def test_doubles_take_the_features_written_down() -> None:
    interests, _ = interests_of(np.array([[2, 2, 4]]), [3], np.ones(3, dtype=np.float32))
    matches = InvertedIndex(np.array([[2], [6]])).matches(interests)
    products, crosses = torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    found = matches.added_to(products, crosses)
    torch.testing.assert_close(found, torch.tensor([[[1.0 + 2 / 3 + 1.0, 0.0]]], dtype=torch.float64))


def test_an_item_met_before_is_matched_by_how_often_and_how_lately() -> None:
    found = features_after(described(trainer_with(HISTORY_ITEM)), [1, 2, 1])
    np.testing.assert_allclose(found[:, 0], [1, 2 / 3, 1])
    np.testing.assert_allclose(found[:, 1], [1, 1 / 3, 2 ** (-1 / RECENCY_PLACES)])
    np.testing.assert_allclose(found[:, 2:], 0)


def test_items_that_share_a_value_with_the_history_are_matched() -> None:
    found = features_after(described(trainer_with(HISTORY_COLOUR)), [1])
    np.testing.assert_allclose(found[0], [1, 1, 0, 0])


def test_an_item_with_two_matching_values_is_matched_twice() -> None:
    found = features_after(described(trainer_with(HISTORY_TAGS)), [1])
    np.testing.assert_allclose(found[0], [2, 1, 0, 0])
    np.testing.assert_allclose(found[1], [1, 0.5, 0, 0])


def test_an_event_does_not_see_itself() -> None:
    trainer = described(trainer_with(HISTORY_ITEM))
    request = trainer.request(events([7], [1]).table)
    interests, _ = trainer.look_for(request)
    found = trainer.matches(interests, torch.from_numpy(trainer.items.find(np.array([1]))))
    assert found is not None
    assert not found.features().any()


def test_what_a_user_says_of_itself_meets_the_same_value_of_an_item() -> None:
    trainer = described(trainer_with(Interaction(user="taste", item="tags"), user=(TASTE,)))
    values = {"taste": pa.array([["b", "z"]], pa.list_(pa.string()))}
    trainer.apply_entities(items_batch([7], (TASTE,), values, kind=EntityKind.USER))
    found = features_after(trainer, [3])
    np.testing.assert_allclose(found[0], [1, 1, 0, 0])


def test_what_an_event_says_meets_the_same_value_of_an_item() -> None:
    where = Feature(name="where", kind=FeatureKind.CATEGORICAL)
    trainer = described(trainer_with(Interaction(user="where", item="colour"), context=(where,)))
    slots = torch.tensor([[0]], dtype=torch.int32)
    wanted = pa.RecordBatch.from_pydict({"where": pa.array([hash_of("red")], pa.int64())})
    slots, _ = trainer.context.encode(wanted, learn=True)
    interests = trainer.interactions.interests(torch.tensor([0]), torch.zeros(1, 5, dtype=torch.int64), slots)
    found = trainer.matches(interests, torch.from_numpy(trainer.items.find(np.arange(1, 5))))
    assert found is not None
    np.testing.assert_allclose(found.features()[0, 0].numpy(), [1, 1, 0, 0])


def hash_of(word: str) -> int:
    values = {
        "colour": pa.array([word]),
        "price": pa.array([None], pa.float64()),
        "tags": pa.array([[]], pa.list_(pa.string())),
    }
    return items_batch([1], (COLOUR, PRICE, TAGS), values).upserts.column("colour")[0].as_py()


def test_the_first_step_with_interactions_scores_as_one_without_them() -> None:
    """A MoNN starts as a Two Tower; matches count only once they were learnt."""
    trainer = described(trainer_with(HISTORY_COLOUR))
    users = trainer.user_side(trainer.request(events([7, 8], [1, 2]).table))
    items = trainer.item_side(torch.from_numpy(trainer.items.find(np.arange(1, 5))))
    matches = torch.rand(2, trainer.interactions.num_features, 4)
    torch.testing.assert_close(
        users.item.score(items.vectors_CV, matches), users.item.score(items.vectors_CV)
    )


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        (Interaction(user="history", item="brand"), "items have no feature 'brand'"),
        (Interaction(user="history", item="price"), "items have no feature 'price'"),
        (Interaction(user="mood", item="colour"), "neither users nor events"),
        (Interaction(user="device", item=c.ITEM_ID), "only 'history' holds items"),
        (Interaction(user="taste", item="colour"), "never equal"),
    ],
)
def test_a_pair_that_can_never_match_is_refused(pair: Interaction, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        trainer_with(pair, user=(DEVICE, TASTE))


def test_keys_of_items_and_of_values_never_meet() -> None:
    rows = np.arange(0, 50)
    items, values = item_keys(rows), value_keys(rows)
    assert not set(items[1:].tolist()) & set(values[1:].tolist())
    assert items[0] == values[0] == 0
