"""Every switch that keeps the libraries quiet, offline and safe, in one place that every entry point goes through."""

import os
import sys
from pathlib import Path

SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it phones home at import
    "RAY_USAGE_STATS_ENABLED": "0",
    "OPENCV_IO_MAX_IMAGE_PIXELS": "100000000",  # refuse decompression bombs before they are decoded
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes and 2.5 GB less
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait do not spin: 2.4 times the speed of an image tower on a machine that is busy
}
# Off by default and switched back on by VLM_ONLINE=1: model hubs are reached only when the user says so.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def switch_off() -> None:
    """Set what the user has not set himself."""
    wanted = SWITCHES if os.environ.get("VLM_ONLINE") == "1" else {**SWITCHES, **OFFLINE}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    here = str(Path(sys.executable).parent)  # tools of this environment come first, also when it is not activated
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ.get("PATH", "")
