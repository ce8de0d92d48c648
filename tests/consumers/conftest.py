from __future__ import annotations

from hypothesis import settings

# A shared machine may stall for a second; how long one example takes says nothing about the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
