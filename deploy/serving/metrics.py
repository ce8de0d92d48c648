"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from deploy.serving.engine import Engine
from deploy.serving.follower import Following
from deploy.serving.fresh import DeltaState
from deploy.serving.shadow import ShadowReport

_SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHADOW = {
    "compared": ("hsnn_shadow_compared_users", "Users in the window of compared answers"),
    "overlap": (
        "hsnn_shadow_overlap_ratio",
        "Mean share of the champion's items that both have",
    ),
    "rank_correlation": ("hsnn_shadow_rank_correlation_ratio", "Mean of Spearman's, of the items both have"),
    "score_shift": ("hsnn_shadow_score_shift", "Mean score of the challenger minus that of the champion"),
    "champion_search_s": ("hsnn_shadow_champion_search_seconds", "Median search of the champion"),
    "challenger_search_s": ("hsnn_shadow_challenger_search_seconds", "Median search of the challenger"),
}


class ServingMetrics:
    """Told by the engine and by the middleware; the rest is looked up when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "hsnn_serve_request_duration_seconds",
            "From a request's head to the last byte of its answer",
            ["route", "code"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._search = Histogram(
            "hsnn_serve_search_seconds", "A batch's search", registry=self.registry, buckets=_SECONDS
        )
        self._queue = Histogram(
            "hsnn_serve_queue_seconds",
            "A request's wait for its search",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "hsnn_serve_batch_users", "Users of a batch", registry=self.registry, buckets=_USERS
        )
        self._dropped = Counter(
            "hsnn_serve_dropped_requests", "Given up on before they were searched", registry=self.registry
        )

    def observe(self, route: str, code: int, seconds: float) -> None:
        """A request that was answered, whatever the answer."""
        self._requests.labels(route, str(code)).observe(seconds)

    def batch(self, users: int, waited_s: Sequence[float], search_s: float) -> None:
        self._search.observe(search_s)
        self._batch.observe(users)
        for seconds in waited_s:
            self._queue.observe(seconds)

    def dropped(self, requests: int) -> None:
        self._dropped.inc(requests)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class StateCollector:
    """What is served and how it got there, when somebody looks. A figure that is unknown is left out."""

    def __init__(
        self,
        engine: Engine,
        following: Callable[[], Following | None],
        deltas: Callable[[], DeltaState | None],
        shadow: Callable[[], ShadowReport | None],
    ) -> None:
        self._engine, self._following, self._deltas, self._shadow = engine, following, deltas, shadow

    def collect(self) -> Iterable[Metric]:
        yield _gauge(
            "hsnn_serve_waiting_users", "Users of requests without an answer", self._engine.waiting_users
        )
        yield from self._served()
        if (following := self._following()) is not None:
            yield from _follower(following)
        if (deltas := self._deltas()) is not None:
            yield from _delta_metrics(deltas)
        if (shadow := self._shadow()) is not None:
            yield from _shadow(shadow)

    def _served(self) -> Iterator[Metric]:
        served = self._engine.served
        info = GaugeMetricFamily("hsnn_serve_version_info", "The version that is served", labels=["version"])
        if served is not None:
            info.add_metric([served.version], 1.0)
            retrieval = served.retrieval
            yield _gauge("hsnn_serve_index_epoch", "Epoch of the index that is served", served.epoch)
            yield _gauge("hsnn_serve_items", "Items that can be answered", retrieval.num_items)
            yield _gauge(
                "hsnn_serve_watermark_timestamp_seconds",
                "Newest event time that the served state has learnt",
                retrieval.watermark_ms / 1_000,
            )
        yield info


def _follower(state: Following) -> Iterator[Metric]:
    swaps = CounterMetricFamily("hsnn_serve_swaps", "Versions gone over to, or not", labels=["result"])
    swaps.add_metric(["served"], state.swaps)
    swaps.add_metric(["failed"], state.failures)
    yield swaps
    yield _gauge(
        "hsnn_serve_registry_failing", "1 while the alias cannot be read", state.registry_error is not None
    )
    yield _gauge(
        "hsnn_serve_version_failing",
        "1 while the version that the alias names cannot be served",
        state.version_error is not None,
    )
    if state.swap_s is not None:
        yield _gauge("hsnn_serve_swap_seconds", "From seeing the served version to serving it", state.swap_s)


def _delta_metrics(state: DeltaState) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "hsnn_serve_deltas_applied", "Deltas of the trainer that were taken over", value=state.applied
    )
    yield _gauge("hsnn_serve_deltas_failing", "1 while deltas are not applied", state.problem is not None)
    if state.created_ms is not None:
        yield _gauge(
            "hsnn_serve_delta_timestamp_seconds",
            "When the trainer cut the last delta applied",
            state.created_ms / 1_000,
        )


def _shadow(report: ShadowReport) -> Iterator[Metric]:
    for name, (metric, text) in _SHADOW.items():
        value = getattr(report, name)
        if value is not None:
            yield _gauge(metric, text, value)
    yield CounterMetricFamily(
        "hsnn_shadow_left_out_requests", "Sampled requests without room", value=report.left_out
    )
    yield CounterMetricFamily(
        "hsnn_shadow_failed_requests", "Requests that the challenger could not answer", value=report.failed
    )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
