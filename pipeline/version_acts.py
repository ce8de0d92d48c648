"""What ``hsnn promote|rollback|prune`` do, as plain data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import Progress

from deploy.pruning import Fate, Plan, Pruned, Pruner
from deploy.registry import Registry
from pipeline.config import Settings


def registry_of(settings: Settings) -> Registry:
    return Registry(settings.registry_config())


def promoted(settings: Settings, number: int, reason: str, dry_run: bool) -> dict[str, Any]:
    """Move ``@champion`` to a version, or say what that would be.

    Raises:
        RegistryError: there is no such version, or it is not whole.
    """
    registry = registry_of(settings)
    registry.promotable(number)
    champion = registry.champion()
    before = None if champion is None else champion.number
    if not dry_run:
        registry.promote(number, reason)
    return _moved(number, before, reason, dry_run)


def rolled_back(settings: Settings, to: int | None, reason: str, dry_run: bool) -> dict[str, Any]:
    """Move ``@champion`` back, or say what that would be.

    Raises:
        RegistryError: there is nothing to go back to.
    """
    registry = registry_of(settings)
    champion, target = registry.way_back(to)
    before = None if champion is None else champion.number
    if not dry_run:
        registry.rollback(reason, target.number)
    return _moved(target.number, before, reason, dry_run)


def _moved(champion: int, before: int | None, reason: str, dry_run: bool) -> dict[str, Any]:
    previous = None if before == champion else before
    would = "would be" if dry_run else "is"
    said = f"version {champion} {would} @champion" + (f", version {previous} @previous" if previous else "")
    return {
        "champion": champion,
        "previous": previous,
        "reason": reason,
        "dry_run": dry_run,
        "said": said,
    }


def pruned(
    settings: Settings, keep_last: int | None, keep_daily: int | None, dry_run: bool, quiet: bool
) -> dict[str, Any]:
    """Remove what retention does not keep, or say what that would be.

    Raises:
        RegistryError: MLflow or the artifact store failed; calling again goes on.
    """
    given = {"keep_last": keep_last, "keep_daily": keep_daily}
    changes = {name: value for name, value in given.items() if value is not None}
    retention = settings.registry.retention.model_copy(update=changes)
    pruner = Pruner(registry_of(settings), retention)
    plan = pruner.plan()
    done = Pruned() if dry_run else _remove(pruner, plan, quiet)
    return {
        "dry_run": dry_run,
        "versions": [_fate_row(fate, done, dry_run) for fate in plan.fates],
        "orphans": [model.model_id for model in plan.orphans],
        "runs": [run.info.run_name for run in plan.runs],
        "removed": done.versions,
        "bytes_reclaimed": done.num_bytes,
    }


def _fate_row(fate: Fate, done: Pruned, dry_run: bool) -> dict[str, Any]:
    """A version may have been given an alias or a pin since the plan was made."""
    spared = not (fate.keeps or dry_run or fate.version.number in done.versions)
    reason = "an alias or a pin came meanwhile" if spared else fate.reason
    return {"version": fate.version.number, "keeps": fate.keeps or spared, "reason": reason}


def _remove(pruner: Pruner, plan: Plan, quiet: bool) -> Pruned:
    with Progress(console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("pruning", total=len(plan))

        def note(what: str) -> None:
            progress.update(task, advance=1, description=f"removed {what}")

        return pruner.remove(plan, note)
