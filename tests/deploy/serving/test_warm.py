"""A version that is served has compiled all that its first request and its first explanation need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.streams import FEATURED, catalogue, trained_learner
from trainers.checkpoint import write_checkpoint

# In a process that has trained nothing: training compiles some of the same kernels.
_ASK_A_WARM_VERSION = """
import sys
from numba.core import event
from deploy.explaining import explain
from deploy.retrieval import Ask
from deploy.serving.versions import as_published, warm
from trainers.checkpoint import read_checkpoint

retrieval = as_published(read_checkpoint(sys.argv[1])).retrieval
warm(retrieval)
with event.install_recorder("numba:compile") as compiled:
    explain(retrieval, Ask(1, 10))
    retrieval.retrieve([1, "nobody"], 10)
print(len(compiled.buffer))
"""


def test_nothing_is_compiled_for_the_first_question_to_a_warm_version(tmp_path: Path) -> None:
    learner = trained_learner(6, FEATURED, context=True)
    learner.apply(catalogue(range(1, 201)))
    path = write_checkpoint(tmp_path, "one", learner.parts(), learner.tables(), learner.manifest({}))
    command = [sys.executable, "-c", _ASK_A_WARM_VERSION, str(path)]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == "0"
