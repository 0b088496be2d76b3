"""A verb for tests of the launcher: it counts its calls and ends as its settings say."""

import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from vlm_core.config import Config
from vlm_core.errors import ConfigError, ServiceError
from vlm_core.run import Verb
from vlm_core.stage import Report, Stage


class Probe(Config):
    """How the run should end."""

    ends: str = "well"
    calls: str = ""  # a folder in which every call leaves a file with its process id (a file that a setting names would count as input)
    good_from: int = 1  # the call from which a retryable run succeeds
    sleep_s: float = 0
    shows: list[str] = []  # variables of its environment


PROBE = Verb("a test", "tests.platform.probe:Probe", "tests.platform.probe:probe", "tests.platform.probe")


def normal() -> Probe:
    return Probe()


def probe(config: Probe, stage: Stage) -> Report:
    calls = 1
    if config.calls:
        Path(config.calls).mkdir(exist_ok=True)
        (Path(config.calls) / str(os.getpid())).touch()
        calls = len(list(Path(config.calls).iterdir()))
    stage.progress("sleeping" if config.sleep_s else "working")
    for step in range(int(20 * config.sleep_s)):
        time.sleep(0.05)
        stage.tracker.metrics({"slept": (step + 1) / 20}, step=step)
    if config.ends == "busy" and calls < config.good_from:
        raise ServiceError(f"Found no server at call {calls}, expected one; wait.")
    if config.ends == "refused":
        raise ConfigError("Found 3 legs, expected 4; add a leg.")
    if config.ends == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.ends == "defect":
        print("something else", file=sys.stderr)
        raise RuntimeError("a defect of ours")
    (stage.out / "x.txt").write_text("the same bytes always")
    Image.new("RGB", (2400, 600), (200, 30, 30)).save(stage.pictures / "red.png")
    for step in range(5):
        stage.tracker.metrics({"loss": 1 / (step + 1)}, step=step)
    shown = {"environment": [{"name": name, "value": os.environ.get(name, "")} for name in config.shows]} if config.shows else {}
    return Report(
        counts={"in": 10, "kept": 7, "dropped.small": 2, "dropped.late": 1}, metrics={"held/R@1": 0.5},
        tables={"rows": [{"name": "a", "n": 1, "share": 0.5}, {"name": None, "n": 2, "share": 1}], **shown}, pictures={"a red picture": "red.png"},
    )  # fmt: skip
