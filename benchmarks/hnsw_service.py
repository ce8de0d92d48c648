"""The same server over faiss HNSW: what an index of plain dot products costs behind the same FastAPI.

The user tower is the model's own. Items are ranked by the linear path of the OverArch, a dot product of one
query of the user with the item's vector, plus the item's bias: the Two Tower model inside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.baselines import FaissHNSW, exact, tune
from benchmarks.corpus import Floats
from deploy.retrieval import Answer, Ask
from deploy.retriever import Retriever
from deploy.serving.app import create_app
from deploy.serving.config import ServeConfig
from deploy.serving.served import Served
from deploy.serving.server import RetrievalServer, prepare_process
from deploy.serving.service import Service
from trainers.checkpoint import read_checkpoint

TARGET_RECALL, TUNING_USERS, TUNING_K = 0.95, 64, 100


class HnswRetriever(Retriever):
    """A version whose items are found in a graph."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        view = self.snapshot.view
        biases_S = view.biases_S[:, None]
        items_NV = np.concatenate([view.vectors_SV, biases_S], axis=1)[view.slots]
        ids_N = self.learner.trainer.items.ids.ids_of(view.rows.astype(np.int64))
        self.graph = FaissHNSW(items_NV.shape[1])
        self.graph.build(items_NV, ids_N)
        asks = [Ask(user) for user in self.sample_users(TUNING_USERS)]
        queries = self._queries(asks)
        truth = exact(items_NV, ids_N, queries, min(TUNING_K, len(ids_N)))
        self.recall = tune(self.graph, queries, truth, TARGET_RECALL)

    def _queries(self, asks: Sequence[Ask]) -> Floats:
        side = self.learner.trainer.user_side(self._request(asks))
        linear_BV = side.item.queries_BQV[:, 0].numpy()
        return np.concatenate([linear_BV, np.ones((len(asks), 1), dtype=np.float32)], axis=1)

    def _answer(self, asks: Sequence[Ask], pool: ThreadPoolExecutor | None = None) -> list[Answer]:
        queries = self._queries(asks)
        found = self.graph.search(queries, min(max(ask.k for ask in asks), self.num_items))
        names = self.learner.trainer.items.names
        return [
            Answer(
                ask.user,
                [names.get(item, item) for item in items[: ask.k]],
                [0.0] * len(items[: ask.k]),
                True,
                self.model_version,
                self.index_epoch,
            )
            for ask, items in zip(asks, found.tolist(), strict=True)
        ]


def main(argv: Sequence[str] | None = None) -> None:
    found = argparse.ArgumentParser(prog="python -m benchmarks.hnsw_service")
    found.add_argument("checkpoint", type=Path)
    found.add_argument("port", type=int)
    arguments = found.parse_args(argv)
    prepare_process()
    faiss.omp_set_num_threads(1)
    service = Service(ServeConfig(port=arguments.port))
    retriever = HnswRetriever(read_checkpoint(arguments.checkpoint))
    service.engine.replace(Served.of(retriever))
    print(f"recall {retriever.recall:.3f} of exact dot products, effort {retriever.graph.effort}", flush=True)
    RetrievalServer(service, create_app(service)).run()


if __name__ == "__main__":
    main()
