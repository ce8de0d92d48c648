"""What is served at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from consumers.batch import Positions
from deploy.retrieval import Retrieval
from deploy.retriever import Retriever
from trainers.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One version, at one epoch. Whatever changes in it is told by another of these."""

    retrieval: Retrieval
    version: str
    """Number in the registry, or a checkpoint's name."""
    epoch: int
    """Of the index."""
    manifest: Manifest
    """Of the checkpoint that the version is."""
    positions: Positions
    """Up to where the stream is in it."""

    @classmethod
    def of(cls, retriever: Retriever) -> Served:
        """A version as it was published."""
        manifest = retriever.manifest
        return cls(retriever, retriever.model_version, retriever.index_epoch, manifest, manifest.positions)
