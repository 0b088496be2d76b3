"""Ranges of a verb's work: the same files wherever they are done, and a killed process costs nothing but its range."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from vlm_core import ranges
from vlm_core.errors import BudgetSpent, ConfigError, LaunchError

SQUARES = "tests.range_work:squares"


def run(folder: Path, **job: object) -> list[Path]:
    (folder / "notes").mkdir(parents=True, exist_ok=True)
    return ranges.work(folder / "squares", SQUARES, {"notes": str(folder / "notes"), **job}, total=10, size=3)


def who(folder: Path, begin: int) -> list[int]:
    return [int(note.name.partition("-")[2]) for note in (folder / "notes").glob(f"{begin}-*")]


def kill_when_told(folder: Path) -> threading.Thread:
    def watch() -> None:
        told = folder / "notes" / "kill_me"
        while not told.exists():
            time.sleep(0.02)
        os.kill(int(told.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_ranges_cover_everything_once_in_order(tmp_path):
    files = run(tmp_path)
    assert [file.read_bytes() for file in files] == [b"0,1,4", b"9,16,25", b"36,49,64", b"81"]
    assert who(tmp_path, 0) == [os.getpid()]


def test_processes_give_the_same_files(tmp_path, monkeypatch):
    alone = [file.read_bytes() for file in run(tmp_path / "alone")]
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    assert [file.read_bytes() for file in run(tmp_path / "several")] == alone
    assert os.getpid() not in [pid for begin in (0, 3, 6, 9) for pid in who(tmp_path / "several", begin)]


def test_a_process_killed_with_kill_9_costs_its_range_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    killer = kill_when_told(tmp_path)
    files = run(tmp_path, wait_at=3)
    killer.join(5)
    assert [file.read_bytes() for file in files] == [b"0,1,4", b"9,16,25", b"36,49,64", b"81"]
    assert len(who(tmp_path, 3)) == 2  # done again, by another process
    assert int((tmp_path / "notes" / "kill_me").read_text()) in who(tmp_path, 3)


def test_a_range_that_kills_whoever_does_it_is_given_up_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_ENGINE", "processes:1")
    monkeypatch.setattr(ranges, "TRIES", 2)
    with pytest.raises(LaunchError, match=r"the range 6\.\.9 of .* took down 2 processes"):
        run(tmp_path, die_at=6)
    assert len(who(tmp_path, 6)) == 2
    assert not list((tmp_path / "squares").glob("[0-9]*6"))


def test_what_a_worker_says_arrives_as_it_was_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    with pytest.raises(BudgetSpent, match="Found a budget of 0"):
        run(tmp_path, refuse_at=0)


def test_a_range_that_is_there_is_not_done_again(tmp_path):
    with pytest.raises(BudgetSpent):
        run(tmp_path, refuse_at=6)
    done = {begin: who(tmp_path, begin) for begin in (0, 3)}
    for note in (tmp_path / "notes").iterdir():
        note.unlink()
    files = run(tmp_path)
    assert done == {0: [os.getpid()], 3: [os.getpid()]}
    assert [who(tmp_path, begin) for begin in (0, 3, 6, 9)] == [[], [], [os.getpid()], [os.getpid()]]
    assert files[2].read_bytes() == b"36,49,64"


def test_an_unknown_engine_and_a_missing_ray_are_one_sentence(tmp_path, monkeypatch):
    for said in ("slurm", "processes:0", "processes:", "rays"):
        monkeypatch.setenv("VLM_ENGINE", said)
        with pytest.raises(ConfigError, match=f"Found '{said}' in VLM_ENGINE"):
            run(tmp_path)
    monkeypatch.setenv("VLM_ENGINE", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Found no package ray"):
        run(tmp_path)
