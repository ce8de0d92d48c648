"""Property tests here are judged by outcome: how long one example takes says more about the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
