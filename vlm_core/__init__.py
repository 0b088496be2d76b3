"""The ML library of the platform. No Dagster, no DVC; MLflow only in `track.py`."""

from vlm_core.config import Config, build

__all__ = ["Config", "build"]
