"""A drifting world with a known truth: catalogue, users, impressions and clicks, all from one seed."""

from pipeline.simulator.config import TasteConfig, WorldConfig
from pipeline.simulator.world import Context, Step, World

__all__ = ["Context", "Step", "TasteConfig", "World", "WorldConfig"]
