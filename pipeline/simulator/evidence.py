"""Is the world worth the network? What one dot product can and cannot find of the truth.

``python -m pipeline.simulator --evidence`` prints the table of docs/simulator.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.simulator.config import HOUR_BANDS, SURFACES, WorldConfig
from pipeline.simulator.tables import Floats, Ints
from pipeline.simulator.world import Context, World

K = 100
RANKS = (16, 64, 256)


@dataclass(frozen=True, slots=True)
class Requests:
    """Users in contexts, and the utility of every live item to each: ``[R, N]``."""

    user_ids: Ints
    context: Context
    utilities: Floats


def recalls(config: WorldConfig, num_requests: int = 2_000) -> dict[str, float]:
    """Share of the true best 100 items among the first 100 of several ways to score them.

    All figures are of the last fifth of the requests. The dot products learn their item vectors and biases
    from the truth of the other four fifths; then each held-out request is given the vector that fits its
    own truth best. No learner gets that much help, so these are upper bounds.
    """
    world = World(config)
    requests = draw_requests(world, num_requests)
    known = num_requests * 4 // 5
    seen, held_out = requests.utilities[:known], requests.utilities[known:]
    best = top(held_out, K)
    popularity = world.popularity(world.live_item_ids()).astype(np.float32)
    found = {
        "chance": K / held_out.shape[1],
        "popularity": recall(best, np.broadcast_to(popularity, held_out.shape)),
        "mean utility": recall(best, np.broadcast_to(seen.mean(axis=0), held_out.shape)),
    }
    for rank in RANKS:
        found[f"dot product, least squares, rank {rank}"] = recall(best, low_rank(seen, held_out, rank))
    found["dot product, softmax, rank 64"] = recall(
        best, softmax_fit(top(seen, K), best, len(popularity), 64)
    )
    return found | _reduced_formulas(world, requests, best)


def draw_requests(world: World, count: int) -> Requests:
    rng = np.random.default_rng(world.config.seed)
    user_ids = rng.integers(1, world.config.num_users + 1, size=count)
    context = Context(
        [HOUR_BANDS[i] for i in rng.integers(len(HOUR_BANDS), size=count)],
        [SURFACES[i] for i in rng.integers(len(SURFACES), size=count)],
    )
    return Requests(user_ids, context, all_utilities(world, user_ids, context))


def all_utilities(world: World, user_ids: Ints, context: Context) -> Floats:
    """``[R, N]``, a few requests at a time."""
    live = world.live_item_ids()
    out = np.empty((len(user_ids), len(live)), np.float32)
    for start in range(0, len(user_ids), 10):
        part = slice(start, start + 10)
        items = np.broadcast_to(live, (len(user_ids[part]), len(live)))
        out[part] = world.true_utility(
            user_ids[part], items, Context(context.hour_band[part], context.surface[part])
        )
    return out


def top(scores: Floats, k: int) -> Ints:
    """The ``k`` best columns of each row, in no order."""
    return np.argpartition(scores, -k, axis=1)[:, -k:]


def recall(best: Ints, scores: Floats) -> float:
    """Share of ``best`` [R, k] among the first k by ``scores`` [R, N]."""
    hit = np.zeros(scores.shape, bool)
    np.put_along_axis(hit, top(scores, best.shape[1]), True, axis=1)
    return float(np.take_along_axis(hit, best, axis=1).mean())


def low_rank(seen: Floats, held_out: Floats, rank: int) -> Floats:
    """Held-out utilities in the item bias and the ``rank`` best item directions of the seen ones."""
    bias = seen.mean(axis=0, keepdims=True)
    centred = _row_centred(seen - bias)
    left = np.linalg.eigh(centred @ centred.T)[1][:, -rank:]
    directions = np.linalg.qr((left.T @ centred).T)[0]
    fitted: Floats = _row_centred(held_out - bias) @ directions @ directions.T + bias
    return fitted


def _row_centred(values: Floats) -> Floats:
    centred: Floats = values - values.mean(axis=1, keepdims=True)
    return centred


def softmax_fit(seen_best: Ints, best: Ints, num_items: int, rank: int, num_steps: int = 120) -> Floats:
    """Scores of a dot product fitted to name the best items: the loss that is kindest to recall."""
    torch.manual_seed(0)
    items = torch.nn.Parameter(torch.randn(num_items, rank) * rank**-0.25)
    bias = torch.nn.Parameter(torch.zeros(num_items))
    _fit_vectors(seen_best, items, bias, [items, bias], num_steps)
    users = _fit_vectors(best, items.detach(), bias.detach(), [], num_steps)
    scores: Floats = (users @ items.T + bias).detach().numpy()
    return scores


def _fit_vectors(
    best: Ints, items: torch.Tensor, bias: torch.Tensor, learnt: list[torch.nn.Parameter], num_steps: int
) -> torch.Tensor:
    """A vector for each request, fitted together with the parameters ``learnt``."""
    users = torch.nn.Parameter(torch.randn(len(best), items.shape[1]) * items.shape[1] ** -0.25)
    optimizer = torch.optim.Adam([users, *learnt], lr=0.05)
    wanted = torch.from_numpy(best)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = -torch.log_softmax(users @ items.T + bias, dim=1).gather(1, wanted).mean()
        torch.autograd.backward([loss])
        optimizer.step()
    return users


def _reduced_formulas(world: World, requests: Requests, best: Ints) -> dict[str, float]:
    """The true formula with a part of it taken away."""
    last = slice(-len(best), None)
    user_ids = requests.user_ids[last]
    context = Context(requests.context.hour_band[last], requests.context.surface[last])
    nowhere = Context([HOUR_BANDS[0]] * len(best), [SURFACES[0]] * len(best))
    visible, averaged = _twin(world, quality=0.0, style=0.0), _twin(world, sharpness=100.0)
    return {
        "formula, declared features only": recall(best, all_utilities(visible, user_ids, context)),
        "formula, interests averaged": recall(best, all_utilities(averaged, user_ids, context)),
        "formula, context ignored": recall(best, all_utilities(world, user_ids, nowhere)),
    }


def _twin(world: World, **tastes: float) -> World:
    """The same world, users and items, whose users weigh things differently."""
    changed = world.config.tastes.model_copy(update=tastes)
    return World(world.config.model_copy(update={"tastes": changed}))
