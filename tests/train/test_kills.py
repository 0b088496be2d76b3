"""`vlm distil` and `vlm transfer` after kill -9: the same command then gives the bytes of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.small_world import make_shards
from tests.scale.verbs import listing
from tests.train.test_distill import TINY, teacher_folder
from tests.train.transfer_world import labelled_set, stage_for, tiny_model
from vlm_core.models.features import features
from vlm_core.models.features_config import Features
from vlm_core.train.fit import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def begin(verb: str, recipe: str, changes: tuple[str, ...], out: Path, **inputs: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "vlm_core", verb, "--recipe", recipe, "--out", str(out)]
    words += [word for change in changes for word in ("--set", change)]
    words += [word for name, path in inputs.items() for word in ("--in", f"{name}={path}")]
    with out.with_name(f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(words, env=dict(os.environ), stdout=log, stderr=log)


def killed_when(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    while process.poll() is None and not holds():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


@pytest.mark.fault("F3")
def test_a_distillation_killed_while_the_student_and_while_the_twin_learns_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    shards, teacher = make_shards(tmp_path / "shards")[0], teacher_folder(tmp_path / "teacher")
    changes = (*TINY, "student.fit.checkpoint_every=4", "student.fit.log_every=1", "student.fit.epochs=40", "student.fit.accelerator=cpu")

    def run(name: str) -> subprocess.Popen[bytes]:
        return begin("distil", "clip_kd_tiny", changes, tmp_path / name, shards=shards, teacher=teacher)

    state = tmp_path / "killed.run" / "state"
    for learner, rows in (("student", 9), ("twin", 6)):
        killed_when(run("killed"), lambda learner=learner, rows=rows: len(read_rows(state / learner)) >= rows)
        assert not (tmp_path / "killed").exists()
    assert (state / "student" / "final.safetensors").exists()  # is not learnt again
    whole = run("whole")
    assert run("killed").wait(300) == whole.wait(300) == 0
    assert "continued at step" in (tmp_path / "killed.log").read_text()
    assert listing(tmp_path / "killed") == listing(tmp_path / "whole")


@pytest.mark.fault("F3")
def test_a_transfer_killed_between_two_seeds_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    labelled_set(tmp_path / "eval_sets")
    features(Features(views=2), stage_for(tmp_path / "features", "features", model=tmp_path / "model", eval_sets=tmp_path / "eval_sets"))
    changes = ("dataset=colours", "shots=[1, 2, 4]", "resamples=1000")

    def run(name: str) -> subprocess.Popen[bytes]:
        return begin("transfer", "tip_adapter_f", changes, tmp_path / name, model=tmp_path / "model", features=tmp_path / "features" / "out")

    killed_when(run("killed"), lambda: "1 shots, seed" in (tmp_path / "killed.log").read_text())
    assert not (tmp_path / "killed").exists()
    whole = run("whole")
    assert run("killed").wait(300) == whole.wait(300) == 0
    assert listing(tmp_path / "killed") == listing(tmp_path / "whole")
