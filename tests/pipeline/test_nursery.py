"""What lives inherit from the process that forks them."""

from __future__ import annotations

from nursery import environment_of_lives


def test_lives_do_not_share_the_store_of_the_test_that_came_first() -> None:
    first = {"MLFLOW_TRACKING_URI": "sqlite:///first.db", "MLFLOW_REGISTRY_URI": "sqlite:///first.db"}
    lives = environment_of_lives({**first, "PATH": "/bin"})
    assert not first.keys() & lives.keys()
    assert lives["PATH"] == "/bin"
