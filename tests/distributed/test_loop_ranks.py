"""Two real processes over gloo: batches in parts, and weights in parts, train as one process with the whole of both."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.halves import PAIRS
from tests.distributed.loop_halves import LARGEST, NAMES, of_rank, two_steps
from tests.distributed.ranks import run_ranks
from tests.train.test_pretrain import Told, one_thread, settings
from tests.train.tiny import SMALL, make_shards, small
from vlm_core.checkpoint import read_weights
from vlm_core.train import launch
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import train


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_ranks(of_rank, 2)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_cached_gradients_of_two_ranks_are_those_of_one_process_with_the_whole_batch(name: str, size: int, ranks: list[Any]) -> None:
    losses, gradients, buffers, norm = two_steps(name, slice(0, PAIRS), None)
    of_ranks = [rank[name, size] for rank in ranks]
    for step, loss in enumerate(losses):
        assert sum(found[0][step] for found in of_ranks) / 2 == pytest.approx(loss, rel=1e-9)
    assert torch.stack([value.norm() for value in gradients.values()]).norm() == pytest.approx(min(LARGEST, norm), rel=1e-4)
    for found in of_ranks:
        assert found[3] == pytest.approx(norm, rel=1e-8)
        assert found[1].keys() == gradients.keys()
        for where, expected in gradients.items():
            torch.testing.assert_close(found[1][where], expected, rtol=1e-6, atol=1e-10, msg=lambda text, where=where: f"{where}: {text}")
        for where, expected in buffers.items():
            torch.testing.assert_close(found[2][where], expected, rtol=1e-9, atol=1e-12, msg=lambda text, where=where: f"{where}: {text}")


@pytest.mark.slow
def test_sharded_weights_train_to_those_of_whole_ones_and_their_checkpoint_goes_on_in_one_process(tmp_path: Path) -> None:
    shards, weights = make_shards(tmp_path / "shapes"), dict[str, dict[str, torch.Tensor]]()
    # in parts and averaged: all that sharding has to get along with
    config = small(
        "fit.epochs=3", "fit.accelerator=cpu", "fit.micro_batch=10", "fit.checkpoint_blocks=true", "optim.ema=0.9", "optim.layer_decay=0.8", "optim.lr=1e-3"
    )
    for name, changes in (("ddp", ()), ("fsdp", ("fit.strategy=fsdp",))):
        (tmp_path / name).mkdir()
        launch.run_ranks("vlm_core.train.pretrain:train", settings(config.but("fit.devices=2", *changes), shards), tmp_path / name, 2, Told())
        weights[name] = read_weights(tmp_path / name / "final.safetensors")
    saved = torch.load(tmp_path / "fsdp" / "steps" / "step-00000007.ckpt", weights_only=True)
    own = torch.load(tmp_path / "ddp" / "steps" / "step-00000007.ckpt", weights_only=True)
    assert {name: value.shape for name, value in saved["state_dict"].items()} == {name: value.shape for name, value in own["state_dict"].items()}
    assert saved["optimizer_states"][0]["state"].keys() == own["optimizer_states"][0]["state"].keys()
    (tmp_path / "fsdp" / "final.safetensors").unlink()
    told = Told()
    with one_thread():
        train(settings(config, shards), tmp_path / "fsdp", told)
    assert told.rows[0][0] == 8
    weights["one"] = read_weights(tmp_path / "fsdp" / "final.safetensors")
    for name in ("fsdp", "one"):
        for where, expected in weights["ddp"].items():
            torch.testing.assert_close(weights[name][where], expected, rtol=0, atol=2e-5, msg=lambda text, where=where, name=name: f"{name} {where}: {text}")
    assert [row["loss"] for row in read_rows(tmp_path / "fsdp")] == pytest.approx([row["loss"] for row in read_rows(tmp_path / "ddp")], abs=1e-4)


@pytest.mark.slow
def test_a_run_killed_with_one_process_goes_on_with_two_sharded_ones_and_reading_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shards = make_shards(tmp_path / "shapes")

    def begin(name: str, *more: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "vlm_core", "pretrain", "--recipe", "clip_tiny", "--in", f"shards={shards}", "--out", str(tmp_path / name)]
        argv += [word for change in (*SMALL, "fit.epochs=20", "fit.accelerator=cpu", "optim.lr=1e-3", *more) for word in ("--set", change)]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def losses(name: str) -> list[tuple[int, float]]:
        rows = csv.reader((tmp_path / f"{name}.run" / "metrics.csv").read_text().splitlines())
        return [(int(step), float(value)) for _, _, step, what, value in rows if what == "loss"]

    victim, state = begin("killed"), tmp_path / "killed.run" / "state"
    while victim.poll() is None and len(read_rows(state)) < 15:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    before = len(losses("killed"))
    for name, more in (("killed", ("fit.devices=2", "fit.strategy=fsdp", "loader.workers=1", "fit.accelerator=auto")), ("whole", ())):
        process = begin(name, *more)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]
    last = losses("whole")[-1][0]
    went_on = losses("killed")[before:]
    assert [step for step, _ in went_on] == list(range(went_on[0][0], last + 1))
    assert went_on[0][0] % 7 == 1  # the step behind a step checkpoint
    assert went_on[0][0] > 7
    # another picture or another order would show in the loss of its step
    assert dict(went_on) == pytest.approx(dict(losses("whole")[went_on[0][0] - 1 :]), abs=1e-4)
    killed, whole = (read_weights(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
