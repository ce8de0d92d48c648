"""How fast training is against plain PyTorch on the same network and batches, and where its time goes.

All contenders go on from one learner in its steady state (``training_world``), with copies of all that it has
learnt, and take turns on the same batches. They learn the same: the table shows their losses. Then the whole
learner goes on alone, with stop watches around its parts, and at last the matrix products of a step and the
bytes that its operations read and write are counted and held against what this machine can do."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Report, Timing, interleaved, parser
from benchmarks.training_parts import PARTS, ByteCounter, Watches
from benchmarks.training_plain import VARIANTS, PlainTorch
from benchmarks.training_world import WorldSizes, ZipfWorld, settle
from consumers.batch import EventBatch
from index_refresh.learner import Learner
from trainers.codebook import CodebookConfig
from trainers.hsnn import HSNNConfig
from trainers.trainer import OnlineTrainer, TrainerConfig

OURS = "ours"
# Kernels compile and tables are paged in.
_WARM_UP_BLOCKS = 1
_COPIED_BYTES = 256 * 2**20
_PRODUCT_SIZE = 1024
_PROBES = 7


@dataclass(slots=True)
class Contender:
    """Learns the batches of one block after the other."""

    learn: Callable[[EventBatch], float]
    """Learns a batch; the items' loss before."""
    blocks: deque[list[EventBatch]]
    losses: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.losses.extend([self.learn(batch) for batch in self.blocks.popleft()])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    _fill_in(arguments)
    report = Report(arguments)
    if arguments.device == "cuda":
        say_why_not_on_gpu(report)
    else:
        measure(report, arguments)
    report.finish()


def _parser() -> argparse.ArgumentParser:
    found = parser("training", "Training speed against plain PyTorch, and where the time goes")
    found.add_argument("--users", type=int, help="met before (default: 1,000,000, quick 100,000)")
    found.add_argument("--nodes", type=int, help="of the one level (default: 256)", default=256)
    found.add_argument("--block", type=int, help="batches a turn (default: 8, quick 4)")
    found.add_argument("--repetitions", type=int, help="turns of each contender (default: 15, quick 7)")
    found.add_argument("--steps", type=int, help="of the whole learner, watched (default: 200, quick 40)")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    return found


def _fill_in(arguments: argparse.Namespace) -> None:
    """The sizes that nobody gave."""
    sizes = {
        "users": (1_000_000, 100_000),
        "items": (1_000_000, 100_000),
        "block": (8, 4),
        "repetitions": (15, 7),
        "steps": (200, 40),
    }
    for name, (full, quick) in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)


def say_why_not_on_gpu(report: Report) -> None:
    if not torch.cuda.is_available():
        report.say("There is no CUDA device on this machine: nothing was measured.")
    else:
        report.say("Training runs on CPUs only: nothing was measured on the GPU.")
    report.figures(cuda_devices=torch.cuda.device_count(), over_plain_torch=None)


def measure(report: Report, arguments: argparse.Namespace) -> None:
    world = ZipfWorld(WorldSizes(arguments.users, arguments.items, seed=arguments.seed))
    learner = prepared(report, world, arguments.nodes)
    race(report, world, learner, arguments)
    watch_parts(report, learner, world.batches(arguments.steps))
    hold_against_limits(report, learner.trainer, world.batches(2))


def prepared(report: Report, world: ZipfWorld, nodes: int) -> Learner:
    report.say(f"meeting {world.sizes.users:,} users and {world.sizes.items:,} items")
    codebook = CodebookConfig(nodes=(nodes,))
    learner = world.learner(TrainerConfig(model=HSNNConfig(codebook=codebook)))
    report.say("training until there is an index")
    settle(learner, world.batches(codebook.start_after_steps + 2))
    return learner


# Against plain PyTorch


def race(report: Report, world: ZipfWorld, learner: Learner, arguments: argparse.Namespace) -> None:
    trainer, turns = learner.trainer, arguments.repetitions + _WARM_UP_BLOCKS
    blocks = [world.batches(arguments.block) for _ in range(turns)]
    contenders = contenders_of(trainer, blocks)
    timings = interleaved(contenders, arguments.repetitions, report.clock, _WARM_UP_BLOCKS)
    show_race(report, timings, contenders, arguments.block * world.sizes.batch)


def contenders_of(trainer: OnlineTrainer, blocks: Sequence[list[EventBatch]]) -> dict[str, Contender]:
    """Ours, and copies of it that are written in plain PyTorch."""

    def plain(variant: PlainTorch) -> Callable[[EventBatch], float]:
        return lambda batch: variant.learn(batch)[0]

    found: dict[str, Contender] = {
        str(name): Contender(plain(PlainTorch(trainer, name)), deque(blocks)) for name in VARIANTS
    }
    ours = Contender(lambda batch: trainer.learn(batch).item_loss, deque(blocks))
    return {OURS: ours, **found}


def show_race(
    report: Report, timings: Mapping[str, Timing], contenders: Mapping[str, Contender], events: int
) -> None:
    ours = timings[OURS]
    rows = [
        (
            name,
            events / timing.median_s,
            1e3 * timing.median_s * 512 / events,
            timing.over(ours),
            quartiles(timing, ours),
            float(np.mean(contenders[name].losses)),
        )
        for name, timing in timings.items()
    ]
    columns = ("", "events/s", "ms / 512 events", "times ours", "quartiles", "mean loss")
    report.table("the same batches, in turns", columns, rows)
    gaps = [abs(row[-1] - rows[0][-1]) / rows[0][-1] for row in rows]
    report.figures(
        events_per_s=events / ours.median_s,
        over_plain_torch=timings["plain"].over(ours),
        over_folded_torch=timings["folded"].over(ours),
        over_vectorised_torch=timings["vectorised"].over(ours),
        loss_gap=max(gaps),
    )


def quartiles(timing: Timing, ours: Timing) -> str:
    """Of the ratio, turn by turn: what the machine's unrest does to it."""
    ratios = np.divide(timing.samples_s, ours.samples_s)
    low, high = np.quantile(ratios, [0.25, 0.75])
    return f"{low:.2f} - {high:.2f}"


# Where the time goes


def watch_parts(report: Report, learner: Learner, batches: Sequence[EventBatch]) -> None:
    """Medians would hide evaluation, which has its turn once in many steps: these are means."""
    with Watches(learner, report.clock) as watches:
        for batch in batches:
            watches.timed("rest", learner.learn, batch)
    total = sum(watches.seconds.values())
    rows = [(name, 1e3 * s / len(batches), s / total) for name, s in watches.seconds.items()]
    report.table("one step of the whole learner", ("part", "ms (mean)", "share"), rows)
    report.figures(learner_events_per_s=sum(map(len, batches)) / total)
    for name in PARTS:
        report.figures(**{f"share_{name.replace(' ', '_').replace(',', '')}": watches.seconds[name] / total})


def hold_against_limits(report: Report, trainer: OnlineTrainer, batches: Sequence[EventBatch]) -> None:
    with FlopCounterMode(display=False) as flops:
        trainer.learn(batches[0])
    with ByteCounter() as traffic:
        trainer.learn(batches[1])
    multiply_adds = flops.get_total_flops() / 2
    bytes_per_s, flops_per_s = copied_bytes_per_s(report), multiplied_flops_per_s(report)
    floor_s = 2 * multiply_adds / flops_per_s
    report.figures(
        step_multiply_adds=multiply_adds,
        step_bytes=traffic.num_bytes,
        memcpy_gb_per_s=bytes_per_s / 1e9,
        matrix_product_gflop_per_s=flops_per_s / 1e9,
        products_at_that_speed_ms=1e3 * floor_s,
        bytes_at_that_speed_ms=1e3 * traffic.num_bytes / bytes_per_s,
    )


def copied_bytes_per_s(report: Report) -> float:
    """Read and written by one large copy."""
    source = torch.ones(_COPIED_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_s(report, lambda: target.copy_(source))


def multiplied_flops_per_s(report: Report) -> float:
    """Of one large square product."""
    factor = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE)
    product = torch.empty_like(factor)
    return 2 * _PRODUCT_SIZE**3 / _median_s(report, lambda: torch.mm(factor, factor, out=product))


def _median_s(report: Report, run: Callable[[], object]) -> float:
    return interleaved({"": run}, _PROBES, report.clock)[""].median_s


if __name__ == "__main__":
    main()
