"""Workers for tests of `vlm_core.ranges`; they run in processes of their own."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.errors import BudgetSpent
from vlm_core.ranges import Worker


def squares(job: Mapping[str, Any]) -> Worker:
    """The squares of a range; each range notes which process did it."""
    folder = Path(job["notes"])

    def work(begin: int, end: int) -> bytes:
        (folder / f"{begin}-{os.getpid()}").touch()
        if begin == job.get("wait_at"):
            _wait_to_be_killed(folder)
        if begin == job.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if begin == job.get("refuse_at"):
            raise BudgetSpent("Found a budget of 0, expected more; raise it.")
        return ",".join(str(number**2) for number in range(begin, end)).encode()

    return work


def _wait_to_be_killed(folder: Path) -> None:
    """Once: tell the number of this process, and wait."""
    told = folder / "kill_me"
    if not told.exists():
        part = folder / "kill_me.part"
        part.write_text(str(os.getpid()))
        part.rename(told)
        time.sleep(120)
