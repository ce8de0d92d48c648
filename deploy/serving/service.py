"""What the routes ask: the engine, the followers, the shadow and the metrics of one server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from deploy.deltas.store import DeltaStore
from deploy.retrieval import Ask
from deploy.serving.config import ServeConfig
from deploy.serving.engine import Answered, Engine
from deploy.serving.follower import Follower, Following
from deploy.serving.fresh import DeltaFollower, DeltaState, FreshVersions
from deploy.serving.metrics import ServingMetrics, StateCollector
from deploy.serving.schemas import ModelOut, ShadowOut
from deploy.serving.served import Served
from deploy.serving.shadow import Shadow, ShadowReport
from deploy.serving.versions import Versions


class Service:
    """The parts of one server, started and stopped together.

    Args:
        config: of the server.
        versions: the registry that is followed; None where ``serve`` is called by hand.
        pinned: a version's number that is served in place of an alias.
        challengers: the registry again, without a cache; asked where ``config.shadow`` names an alias.
        deltas: opens where deltas are, once a thread; None follows none. ``versions`` builds replicas then.
    """

    def __init__(
        self,
        config: ServeConfig,
        versions: Versions | None = None,
        pinned: str | None = None,
        challengers: Versions | None = None,
        deltas: Callable[[], DeltaStore] | None = None,
    ) -> None:
        self.config = config
        self.metrics = ServingMetrics()
        self.engine = Engine(config.engine, self.metrics)
        self._follower = self._shadow = self._shadow_follower = self._deltas = None
        alias, pace = pinned or config.alias, (config.poll_s, config.retry_s)
        if versions is not None and deltas is not None:
            fresh = FreshVersions(versions, deltas(), self.engine)
            self._follower = Follower(fresh, alias, fresh.serve, *pace)
            self._deltas = DeltaFollower(self.engine, deltas(), fresh, config.freshness)
        elif versions is not None:
            self._follower = Follower(versions, alias, self.engine.serve, *pace)
        if challengers is not None and config.shadow.alias is not None:
            self._shadow = Shadow(config.shadow)
            self._shadow_follower = Follower(
                challengers,
                config.shadow.alias,
                self._shadow.serve,
                *pace,
            )
        self._is_leaving = False
        self.metrics.registry.register(
            StateCollector(self.engine, self.following, self.deltas, self._compared)
        )

    def start(self) -> None:
        for part in (self.engine, self._follower, self._deltas, self._shadow, self._shadow_follower):
            if part is not None:
                part.start()

    def leave(self) -> None:
        """Say so in /readyz; what is asked is still answered."""
        self._is_leaving = True

    def close(self) -> None:
        for part in (self._shadow_follower, self._shadow, self._deltas, self._follower, self.engine):
            if part is not None:
                part.close()

    def offer(self, asks: Sequence[Ask], answered: Answered) -> None:
        """Perhaps have the challenger answer it too."""
        if self._shadow is not None:
            self._shadow.offer(asks, answered)

    def deltas(self) -> DeltaState | None:
        """How the server follows the trainer; None where it follows versions alone."""
        return None if self._deltas is None else self._deltas.state

    def following(self) -> Following | None:
        return None if self._follower is None else self._follower.state

    def not_ready(self) -> list[str]:
        """Why nobody should ask this server; empty where it is ready."""
        if self._is_leaving:
            return ["leaving"]
        if self.engine.served is not None:
            return []
        following = self.following()
        return ["starting"] if following is None else following.why_not() or ["loading a version"]

    def model(self, served: Served) -> ModelOut:
        """What is served, in words and figures."""
        following, deltas, retrieval = self.following(), self.deltas(), served.retrieval
        trainer = retrieval.learner.trainer
        return ModelOut(
            version=served.version,
            epoch=served.epoch,
            alias=None if following is None else following.alias,
            wanted=None if following is None else following.wanted,
            problems=[] if following is None else following.why_not(),
            checkpoint=retrieval.learner.parent or "",
            step=trainer.step,
            events_trained=trainer.events_trained,
            watermark_ms=retrieval.watermark_ms,
            items=retrieval.num_items,
            users=len(trainer.users),
            nodes=list(retrieval.learner.refresher.nodes),
            swaps=0 if following is None else following.swaps,
            swap_s=None if following is None else following.swap_s,
            deltas_applied=None if deltas is None else deltas.applied,
            delta_at_ms=None if deltas is None else deltas.created_ms,
            delta_problem=None if deltas is None else deltas.problem,
        )

    def _compared(self) -> ShadowReport | None:
        return None if self._shadow is None else self._shadow.report()

    def shadow_report(self) -> ShadowOut | None:
        """None where no challenger is scored."""
        report, follower = self._compared(), self._shadow_follower
        if report is None or follower is None:
            return None
        state = follower.state
        return ShadowOut(alias=state.alias, problems=state.why_not(), **asdict(report))
