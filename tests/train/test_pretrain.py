"""The pre-training verb: it learns, it says what happened, it goes on after kill -9, and it fails in one sentence."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines.demo_table import TRAINED
from tests.train.tiny import SMALL, make_shards, small
from vlm_core.checkpoint import read_weights
from vlm_core.errors import CheckpointError, Incompatible, LaunchError, NumericsError
from vlm_core.models import pretrained
from vlm_core.run import run
from vlm_core.stage import Report
from vlm_core.train import devices, launch
from vlm_core.train.config import Fit, Pretrain
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import first_towers, train

WEIGHTS = "model.safetensors"


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.mixtures: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        (self.rows if "loss" in values else self.mixtures).append((step, dict(values)))

    def progress(self, what: str, done: int, total: int, every_s: float = 2.0) -> None: ...


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("VLM_HOME", str(home))
    return home


def pretrain(config: Pretrain, shards: Path, out: Path, **more: Path) -> Report:
    return run("pretrain", config, {"shards": shards, **more}, out, recipe="clip_tiny")


def settings(config: Pretrain, shards: Path) -> dict[str, object]:
    return {"config": config.model_dump(mode="json"), "shards": str(shards), "initial": ""}


def test_a_model_from_scratch_finds_sentences_it_never_saw(shards: Path, tmp_path: Path, own_home: Path) -> None:
    report = pretrain(small("fit.epochs=25"), shards, tmp_path / "model")
    assert set(TRAINED.values()) <= report.metrics.keys()  # what the table of `make demo` shows
    assert report.metrics["quick.auc"] > 0.8  # 0.5 is chance
    assert report.metrics["final_loss"] < 0.75 * 4.16  # log(64) is chance
    assert report.counts["steps"] == 25 * (report.counts["in"] // 64)
    assert report.metrics["captions.alt"] == 1.0
    assert {(tmp_path / "model.run" / "pictures" / file).read_bytes()[:4] for file in report.pictures.values()} == {b"\x89PNG"}
    model = pretrained.load(tmp_path / "model")
    rows = pq.read_table(next((own_home / "catalog" / "models").iterdir())).to_pylist()
    assert [(row["model_id"], row["snapshot_md5"], row["path"]) for row in rows] == [(model.digest, model.config["snapshot_md5"], str(tmp_path / "model"))]
    assert model.config["snapshot_md5"] == report.provenance["inputs"]["shards"]
    assert model.config["recipe"] == "clip_tiny"
    texts = ["a blue circle on the left", "a yellow bar on the right"]
    assert model.encode_texts(texts).shape == (2, 32)


# queues, slow copies, an average of the weights, a batch in parts, random patches and words: all that a run may carry from step to step
COMPOSED = (
    "objectives.moco={hidden: 16, width: 8, queue: 100}", "objectives.optimal_transport={}", "objectives.masked_language={}", "optim.ema=0.9",
    "fit.micro_batch=24", "model.image.patch_dropout=0.25", "optim.layer_decay=0.8", "optim.schedule=constant", "optim.cooldown_share=0.5",
)  # fmt: skip


@pytest.mark.fault("F3")
@pytest.mark.parametrize("more", [("fit.epochs=30",), ("fit.epochs=8", *COMPOSED)], ids=["clip", "composed"])
def test_killed_at_a_random_step_it_goes_on_from_the_last_checkpoint_to_the_same_weights(shards: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    config = small(*more)
    argv = [sys.executable, "-m", "vlm_core", "pretrain", "--recipe", "clip_tiny", "--in", f"shards={shards}", "--out", str(tmp_path / "killed")]
    argv += [word for change in (*SMALL, *more) for word in ("--set", change)]
    state, moment = tmp_path / "killed.run" / "state", random.randint(8, 2 * config.fit.epochs)
    victim = subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while victim.poll() is None and len(read_rows(state)) < moment:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    _, said = victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL, said.decode()[-2000:]
    assert not (tmp_path / "killed").exists()
    saved = sorted(path.name for path in (state / "steps").iterdir())
    before = read_rows(state)
    with one_thread():
        report = pretrain(config, shards, tmp_path / "killed")
        pretrain(config, shards, tmp_path / "whole")
    step = int(saved[-1].removesuffix(".ckpt").rpartition("-")[2])
    assert step % 7 == 0
    assert 0 < step <= len(before) < report.counts["steps"]
    killed, whole = (read_weights(tmp_path / name / WEIGHTS) for name in ("killed", "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}, killed after step {len(before)}: {text}")


class one_thread:  # noqa: N801  reads as a word in a with statement
    """Sums in the order in which the other process made them."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.before)


def test_a_resumed_run_continues_its_rows_of_numbers(shards: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "state", Told()
    folder.mkdir()
    train(settings(small(), shards), folder, told)
    steps = [row["step"] for row in read_rows(folder)]
    assert steps == list(range(1, len(steps) + 1)) == [step for step, _ in told.rows]
    assert all(sum(shares.values()) == pytest.approx(1) for _, shares in told.mixtures)
    assert told.mixtures[-1][0] == steps[-1]
    kept = sorted((folder / "steps").iterdir())
    assert len(kept) == 2  # the newest two
    (folder / "final.safetensors").unlink()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99')  # a row cut by a crash
    again = Told()
    train(settings(small(), shards), folder, again)
    assert [row["step"] for row in read_rows(folder)] == steps
    assert again.rows[0][0] == int(kept[-1].stem.rpartition("-")[2]) + 1
    first, second = dict(told.rows), dict(again.rows)
    assert all(second[step]["loss"] == pytest.approx(first[step]["loss"], abs=1e-6) for step in second)
    watched = {"data_wait", "image_cosine", "text_cosine", "image_rank", "text_rank", "collapsed"}
    assert {"loss", "term.image_text_contrastive", "lr", "scale", "grad_norm", "pairs_per_s", *watched} == set(again.rows[-1][1])


@pytest.mark.fault("F3")
def test_a_process_that_dies_ends_the_others_and_says_where_to_look(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"Found that training process \d ended with code 1, expected it to finish; its output is in .*rank-\d.log"):
        launch.run_ranks("vlm_core.train.pretrain:no_such_function", {}, tmp_path, 2, Told())
    with pytest.raises(Incompatible, match="Found no objective"):
        launch.run_ranks("vlm_core.train.pretrain:train", {"config": {}, "shards": str(shards), "initial": ""}, tmp_path, 1, Told())


def test_a_run_by_samples_sees_so_many_pairs_and_says_how_often_each(shards: Path, tmp_path: Path, own_home: Path) -> None:
    report = pretrain(small("fit.samples=640", "fit.epochs=1", "fit.heldout_every=4"), shards, tmp_path / "model")  # 4 steps of 64 pairs are an epoch
    assert {name: report.counts[name] for name in ("steps", "seen", "epochs")} == {"steps": 10, "seen": 640, "epochs": 3}
    rows = pq.read_table(next((own_home / "catalog" / "models").iterdir())).to_pylist()
    assert [row["epochs"] for row in rows] == [2.5]
    assert [row["step"] for row in report.tables["held-out pairs while training"]] == [4, 8]
    assert report.pictures["nearest captions at step 8"] == "nearest_step-00000008.png"
    assert {"data_wait", "image_cosine", "text_rank", "collapsed"} <= report.metrics.keys()
    assert 0 < report.metrics["data_wait"] < 1


def test_divergence_names_step_term_and_the_last_good_checkpoint(shards: Path, tmp_path: Path) -> None:
    config = small("optim.lr=1e30", "optim.grad_clip=null", "optim.warmup_steps=0", "fit.checkpoint_every=1")
    with pytest.raises(NumericsError, match=r"Found nan for 'image_text_contrastive' at step \d+, expected a finite number.*checkpoint"):
        pretrain(config, shards, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_training_goes_on_from_the_model_it_is_given_and_names_it_as_parent(shards: Path, tmp_path: Path, own_home: Path) -> None:
    pretrain(small(), shards, tmp_path / "first")
    report = pretrain(small("optim.lr=1e-9"), shards, tmp_path / "second", initial=tmp_path / "first")
    first, second = (pretrained.load(tmp_path / name) for name in ("first", "second"))
    assert second.config["parents"] == [{"model_id": first.digest, "relation": "initial", "name": ""}]
    for name, value in first.towers.state_dict().items():
        torch.testing.assert_close(second.towers.state_dict()[name], value, rtol=0, atol=1e-6)
    links = pq.read_table(next((own_home / "catalog" / "model_parents").glob(f"{report.run_id}*"))).to_pylist()
    assert [(row["model_id"], row["parent_model_id"], row["relation"]) for row in links] == [(second.digest, first.digest, "initial")]
    with pytest.raises(CheckpointError, match=r"Found model\.image\.layers 1"):
        pretrain(small("model.image.layers=2"), shards, tmp_path / "third", initial=tmp_path / "first")


def test_a_part_that_the_first_model_lacks_begins_afresh_on_its_towers(shards: Path, tmp_path: Path) -> None:
    fused = "model.fusion={kind: joint_fusion, width: 32, layers: 1, heads: 2}", "objectives.image_text_matching={}"
    pretrain(small(), shards, tmp_path / "first")
    pretrain(small(*fused, "optim.lr=1e-9"), shards, tmp_path / "second", initial=tmp_path / "first")
    first, second = (pretrained.load(tmp_path / name).towers.state_dict() for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-6)
    assert all(name.startswith("fusion.") for name in second.keys() - first.keys())
    begun = [first_towers(small(*fused, f"seed={seed}"), str(tmp_path / "first")).fusion for seed in (0, 0, 1)]
    one, same, other = (next(part.parameters()).detach() for part in begun if part is not None)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(CheckpointError, match="Found model.fusion"):  # what has learnt with a part does not go on without it
        pretrain(small(), shards, tmp_path / "third", initial=tmp_path / "second")


def test_the_sigmoid_recipe_trains_and_its_bias_moves(shards: Path, tmp_path: Path) -> None:
    from vlm_core.recipes.pretrain.base import siglip_tiny

    config = siglip_tiny().but(*SMALL, "objectives.sigmoid.chunk_size=24")
    (tmp_path / "state").mkdir()
    train(settings(config, shards), tmp_path / "state", Told())
    rows = read_rows(tmp_path / "state")
    assert rows[-1]["term.sigmoid"] < 0.8 * rows[0]["term.sigmoid"]
    assert float(read_weights(tmp_path / "state" / "final.safetensors")["bias"]) != -10.0


def test_locked_trunks_see_every_picture_once(shards: Path, tmp_path: Path) -> None:
    from vlm_core.recipes.pretrain.base import lit_packaged

    config = lit_packaged().but("model.image.image_size=64", "loader.batch_size=64", "fit.epochs=4", "fit.log_every=1", "fit.checkpoint_every=4")
    report = pretrain(config, shards, tmp_path / "model")
    assert report.metrics["quick.auc"] > 0.6
    rows = json.loads((tmp_path / "model.run" / "result.json").read_text())
    assert rows["counts"]["epochs"] == 4
    model = pretrained.load(tmp_path / "model")
    assert {parent["name"] for parent in model.config["parents"]} == {"efficientnet_lite0", "minilm"}


def test_a_model_of_another_activation_is_refused_as_a_beginning(shards: Path, tmp_path: Path) -> None:
    pretrain(small("fit.samples=64"), shards, tmp_path / "first")
    with pytest.raises(
        CheckpointError, match=r"Found weights of activation 'gelu' in .*first, expected 'quick_gelu' as this recipe says; set model.activation=gelu"
    ):
        pretrain(small("model.activation=quick_gelu"), shards, tmp_path / "second", initial=tmp_path / "first")
    bare = tmp_path / "bare"  # nothing of the data can be opened, and the weights are no weights: the sentence comes before either is asked for
    bare.mkdir()
    (tmp_path / "first" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Found model.image.layers 1"):
        pretrain(small("model.image.layers=2"), bare, tmp_path / "third", initial=tmp_path / "first")


def test_more_processes_than_gpus_are_refused_with_how_many_there_are() -> None:
    with pytest.raises(
        Incompatible, match="Found fit.devices 4 on a machine with 2 GPUs, expected a process per GPU at most; set fit.devices=2, or fit.accelerator=cpu"
    ):
        devices.require(Fit(devices=4), gpus=2)
    with pytest.raises(Incompatible, match="Found fit.accelerator=gpu on a machine without a GPU"):
        devices.require(Fit(accelerator="gpu"), gpus=0)
    devices.require(Fit(devices=4, accelerator="cpu"), gpus=2)
    devices.require(Fit(devices=4), gpus=0)
    devices.require(Fit(devices=2), gpus=2)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("objectives.image_text_contrastive=null",), "Found no objective, expected at least one"),
        (("objectives.sigmoid={}",), "Found the objective 'sigmoid' with model.scale.bias=null"),
        (("fit.devices=3",), "Found loader.batch_size 64 on 3 devices"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_data_is_read(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        small(*changes)


def test_shares_of_languages_that_are_drawn_by_weight_are_told(shards: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "state", Told()
    folder.mkdir()
    train(settings(small("loader.language_power=0.7"), shards), folder, told)
    seen = json.loads((folder / "mixture.json").read_text())["languages"]
    assert sum(seen.values()) == len(told.rows) * small().loader.batch_size
    epochs = [shares for _, shares in told.mixtures if any(name.startswith("languages.") for name in shares)]
    assert epochs
    assert all(set(shares) <= {f"languages.{name}" for name in seen} and sum(shares.values()) == pytest.approx(1) for shares in epochs)
