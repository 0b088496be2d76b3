"""The ways of the loop: averaged weights, rates by layer, blocks made again, what is watched, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.objectives.world import batch, built, towers
from tests.train.test_pretrain import Told, one_thread, settings
from tests.train.tiny import make_shards, small
from vlm_core.checkpoint import read_weights
from vlm_core.errors import DataError, Incompatible, NumericsError
from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.train import ranks, snapshot, watch
from vlm_core.train.blocks import blocks_of, checkpoint_blocks
from vlm_core.train.body import Batch, Body, Lesson
from vlm_core.train.config import Fit, Optim, Pretrain
from vlm_core.train.fit import Loop, fit, read_rows
from vlm_core.train.optim import groups
from vlm_core.train.pretrain import first_towers, train


class Heard(Told):
    """A reporter that also remembers what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def progress(self, what: str, done: int, total: int, every_s: float = 2.0) -> None:
        self.said.append(what)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def trained(shards: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], Path, Heard]]:
    """(weights, state folder, what was told) of a run with these changes."""

    def run(name: str, *changes: str, lesson: Lesson | None = None) -> tuple[dict[str, Tensor], Path, Heard]:
        folder, heard = tmp_path / name, Heard()
        folder.mkdir()
        with one_thread():
            train(settings(small(*changes), shards), folder, heard, lesson)
        return read_weights(folder / "final.safetensors"), folder, heard

    return run


def body_of(chosen: dict[str, Any], model: TwoTower) -> Body:
    objectives = menu.Objectives.read(chosen)
    return Body(model, dict(built(objectives, model).items()), dict.fromkeys(chosen, 1.0), objectives.needs)  # type: ignore[arg-type]


# ---------------------------------------------------------------- weights


def test_what_is_published_under_ema_is_the_running_mean_of_the_weights(trained: Callable[..., Any]) -> None:
    plain = ("optim.schedule=constant", "optim.warmup_steps=0")  # so that a shorter run is the beginning of a longer one
    weights = [trained(f"plain {steps}", *plain, f"fit.samples={64 * steps}")[0] for steps in (1, 2, 3)]
    mean, _, _ = trained("averaged", *plain, "fit.samples=192", "optim.ema=0.2")
    expected = {name: value.detach().clone() for name, value in first_towers(small(), "").state_dict().items()}
    for decay, after in zip((0.1, 2 / 11, 0.2), weights, strict=True):  # (1 + t) / (10 + t) at first
        expected = {name: decay * value + (1 - decay) * after[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(mean[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_every_logit_scale_is_brought_back_after_the_step_and_recorded(trained: Callable[..., Any]) -> None:
    one_leap = ("objectives.optimal_transport={}", "optim.lr=9", "optim.warmup_steps=0", "optim.schedule=constant", "fit.samples=64", "fit.checkpoint_every=1")
    _, folder, _ = trained("otter", *one_leap)
    (row,) = read_rows(folder)
    for name in ("scale", "scale.optimal_transport"):  # Adam's first step is the rate, up or down: e^9 times too high or too low
        assert row[name] == pytest.approx(1.0) or row[name] == pytest.approx(100.0)
    (saved,) = (folder / "steps").iterdir()
    kept = torch.load(saved, weights_only=True)["state_dict"]["model.objectives.optimal_transport.log_scale"]
    assert float(kept.exp()) == pytest.approx(row["scale.optimal_transport"])


def test_terms_are_recorded_without_their_factors_and_minimised_with_them() -> None:
    given, chosen = batch(), {"optimal_transport": {"alpha": 0.2, "weight": 0.5}, "region_word": {"box": 3.0, "centre": 0.5}}
    model, settings_ = towers(kind="region_word"), menu.Objectives.read(chosen)
    weights = {kind: objective.weight for kind, objective in settings_.chosen().items()}
    total, terms = Body(model, dict(built(settings_, model).items()), weights, settings_.needs)(given)  # type: ignore[arg-type]
    factors = {"optimal_transport.contrastive": 0.1, "optimal_transport.transport": 0.4, "region_word": 1.0, "region_word.box": 3.0, "region_word.centre": 0.5}
    assert terms.keys() == factors.keys()
    torch.testing.assert_close(total, sum(factors[name] * value for name, value in terms.items()))
    seen = torch.zeros(())
    for other, factor in ({"alpha": 0.9}, 0.45), ({"alpha": 0.2}, 0.1):  # the term itself does not move with alpha
        again = menu.Objectives.read({"optimal_transport": {**other, "weight": 0.5}})
        torch.manual_seed(0)
        same = towers(kind="region_word")
        body = Body(same, dict(built(again, same).items()), {"optimal_transport": 0.5}, again.needs).eval()  # type: ignore[arg-type]
        assert body.weight_of("optimal_transport.contrastive") == pytest.approx(factor)
        found = body(given)[1]["optimal_transport.contrastive"].detach()
        seen = found if not float(seen) else seen
        torch.testing.assert_close(found, seen)


def test_rates_fall_by_the_layer_from_the_heads_down_and_scalars_stand_apart() -> None:
    model = towers(**{"image.layers": 2, "text.layers": 3})
    body = body_of({"simsiam": {"hidden": 24, "bottleneck": 12}}, model)
    share = {id(value): group["lr"] / 0.01 for group in groups(body, Optim(lr=0.01, layer_decay=0.5)) for value in group["params"]}
    image, text = model.image, model.text
    expected = {
        1.0: [image.proj, image.ln_post.weight, text.text_projection, text.ln_final.bias, model.log_scale, *body.objectives.parameters()],
        0.5: [image.transformer.resblocks[1].mlp.c_fc.weight, text.transformer.resblocks[2].ln_1.weight],
        0.25: [image.transformer.resblocks[0].attn.in_proj_weight, text.transformer.resblocks[1].ln_1.weight],
        0.125: [image.conv1.weight, image.class_embedding, image.positional_embedding, image.ln_pre.weight, text.transformer.resblocks[0].ln_1.weight],
        0.0625: [text.token_embedding.weight, text.positional_embedding],
    }
    assert {factor: {share[id(value)] for value in values} for factor, values in expected.items()} == {factor: {factor} for factor in expected}
    found = groups(body, Optim(weight_decay=0.3))
    assert [{value.ndim == 0 for value in group["params"]} for group in found].count({True}) == 1
    assert {group["weight_decay"] for group in found if model.log_scale in set(group["params"])} == {0.0}
    assert sum(len(group["params"]) for group in found) == sum(value.requires_grad for value in body.parameters())


def test_blocks_made_again_give_the_same_gradients_from_less_memory() -> None:
    given, found = batch(), list[tuple[dict[str, Tensor], int]]()
    for again in (False, True):
        model = towers(**{"image.layers": 4, "text.layers": 4})
        names = set(model.state_dict())
        if again:
            checkpoint_blocks(model)
        assert set(model.state_dict()) == names
        assert len(list(blocks_of(model.image))) == 4
        body, kept = body_of({"image_text_contrastive": {}}, model), [0]

        def keep(value: Tensor, kept: list[int] = kept) -> Tensor:
            kept[0] += value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            total, _ = body(given)
            bytes_kept = kept[0]
        total.backward()
        found.append(({name: value.grad for name, value in body.named_parameters() if value.grad is not None}, bytes_kept))
    assert found[0][0].keys() == found[1][0].keys()
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-5, atol=1e-7)
    assert found[1][1] < 0.5 * found[0][1]


# ---------------------------------------------------------------- what is watched


def test_spread_is_one_where_all_rows_are_the_same_and_full_where_they_are_at_right_angles() -> None:
    assert watch.spread(torch.eye(8)) == pytest.approx((0.0, 8.0), abs=1e-5)
    assert watch.spread(torch.eye(8)[:1].expand(5, 8)) == pytest.approx((1.0, 1.0), abs=1e-3)
    half = torch.cat([torch.eye(2)[:1].expand(2, 2), torch.eye(2)[1:].expand(2, 2)])
    assert watch.spread(half) == pytest.approx((1 / 3, 2.0), abs=1e-5)  # 2 of 6 pairs are equal
    assert watch.spreads((torch.eye(8), torch.eye(8)[:1].expand(5, 8)), settled=True)["collapsed"] == 1.0
    assert watch.spreads((torch.eye(8), torch.eye(8)[:1].expand(5, 8)), settled=False)["collapsed"] == 0.0
    assert watch.spreads((torch.eye(8), torch.eye(8)), settled=True)["collapsed"] == 0.0


def test_a_run_whose_embeddings_fall_together_says_so_once(trained: Callable[..., Any]) -> None:
    _, folder, heard = trained("collapsed", "optim.lr=0.5", "optim.warmup_steps=0", "fit.epochs=5")
    assert [row["collapsed"] for row in read_rows(folder)][-5:] == [1.0] * 5
    assert [said.partition(":")[0] for said in heard.said if "COLLAPSE" in said] == ["COLLAPSE"]
    _, folder, heard = trained("healthy", "fit.epochs=16", "optim.lr=0.001")
    assert {row["collapsed"] for row in read_rows(folder)} == {0.0}
    assert not any("COLLAPSE" in said for said in heard.said)


def test_the_only_terms_gradient_norm_is_the_norm_of_the_whole_gradient(trained: Callable[..., Any]) -> None:
    _, folder, _ = trained("one", "fit.term_norms=true", "fit.epochs=1", "objectives.image_text_contrastive.weight=0.5")
    rows = read_rows(folder)
    assert [row["norm.image_text_contrastive"] for row in rows] == pytest.approx([row["grad_norm"] for row in rows], rel=1e-4)
    _, folder, _ = trained("two", "fit.term_norms=true", "fit.epochs=1", "objectives.masked_language={}")
    assert all(row["norm.masked_language"] + row["norm.image_text_contrastive"] >= row["grad_norm"] > 0 for row in read_rows(folder))


def test_looking_at_held_out_pairs_on_the_way_changes_nothing_and_is_told_and_drawn(trained: Callable[..., Any]) -> None:
    changes = ("optim.ema=0.9", "model.image.patch_dropout=0.25", "fit.epochs=3")
    plain, _, _ = trained("plain", *changes)
    looked, folder, heard = trained("looked", *changes, "fit.heldout_every=5")
    assert all(torch.equal(plain[name], value) for name, value in looked.items())
    rows = watch.held_out_rows(folder)
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[1]["quick.pairs"] == 128
    told = [(step, values) for step, values in heard.mixtures if "heldout.auc" in values]
    assert [(step, values["heldout.auc"]) for step, values in told] == [(row["step"], row["quick.auc"]) for row in rows]
    assert [Image.open(folder / watch.NEAREST / f"step-{step:08d}.png").size[0] > 100 for step in (5, 10)] == [True, True]


def test_flops_of_a_product_are_counted_three_times_for_forward_and_backward() -> None:
    result, flops = watch.flops_of(lambda: torch.ones(3, 5) @ torch.ones(5, 7))
    assert flops == 3 * 2 * 3 * 5 * 7
    assert result.shape == (3, 7)
    assert watch.peak_of(torch.device("cpu")) is None


# ---------------------------------------------------------------- what goes wrong on the way


class Poisoned(Lesson):
    """A term that is no number from the sixth step on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        return {"poison": out.image_BD.sum() * (0.0 if self.calls <= 5 else float("nan"))}


def test_a_term_that_is_no_number_in_the_middle_of_a_run_is_named_with_step_and_last_good_checkpoint(trained: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"Found nan for 'poison' at step 6, expected a finite number.*the last good checkpoint is .*step-00000004.ckpt"):
        trained("poisoned", "fit.checkpoint_every=2", lesson=Poisoned())
    assert len(read_rows(tmp_path / "poisoned")) == 5


class Batches:
    """Three batches, as a loader gives them."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.at = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        while self.at < len(self.batches):
            self.at += 1
            yield self.batches[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_a_picture_that_holds_no_numbers_is_named(tmp_path: Path) -> None:
    config = small()
    batches = [{**batch(4), "uids": [f"uid-{step}-{row}" for row in range(4)]} for step in range(3)]
    batches[1]["images"][2, 0, 3, 3] = np.nan
    body = body_of({"image_text_contrastive": {}}, towers())
    with pytest.raises(DataError, match=r"Found 1 pictures of a batch with values that are no numbers \(the first is uid-1-2\), expected finite pixels"):
        fit(Loop(body, config.optim, config.fit, 3), Batches(batches), config.fit, tmp_path, 4, Told())


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("fit.gradients=accumulated",), "Found fit.gradients=accumulated with fit.micro_batch=null, expected the size of a part; set fit.micro_batch"),
        (("fit.micro_batch=8", "fit.term_norms=true"), "Found fit.term_norms with fit.micro_batch, expected steps in one piece"),
        (
            ("fit.micro_batch=8", "model.fusion={kind: gated_fusion, blocks: 1}", "objectives.image_text_matching={}"),
            "Found the objective 'image_text_matching' with fit.micro_batch=8 and cached gradients, expected objectives that depend on features only",
        ),
        (
            ("fit.micro_batch=8", "objectives.masked_image={}", "model.visual_tokens={kind: patch_clusters}"),
            "Found the objective 'masked_image' with fit.micro_batch=8 and cached gradients, expected objectives that depend on features only",
        ),
        (
            ("fit.micro_batch=8", "objectives.captioning={chunk_size: 16}", "model.decoder={heads: 2}"),
            "Found the objective 'captioning' with fit.micro_batch=8 and cached gradients, expected a decoder that sees no more captions at a time than the towers; "
            "set objectives.captioning.chunk_size=8",
        ),
        (
            ("fit.micro_batch=8", "model.image={kind: clip_resnet, image_size: 32, layers: [1, 1, 1, 1], width: 8, heads: 4}"),
            "Found the image tower 'clip_resnet' with fit.micro_batch=8 and cached gradients, expected one without batch norm",
        ),
        (
            ("fit.strategy=fsdp", "objectives.moco={queue: 128}"),
            "Found the objective 'moco' with fit.strategy=fsdp, expected whole weights for its slow copy; set fit.strategy=ddp or drop objectives.moco",
        ),
        (("fit.strategy=fsdp", "fit.heldout_every=5"), "Found fit.heldout_every with fit.strategy=fsdp.*set fit.strategy=ddp or fit.heldout_every=0"),
        (
            ("fit.compile=probe", "model.image={kind: efficientnet_lite0, names: false}"),
            "Found fit.compile=probe with a locked image tower, whose features are computed once",
        ),
    ],
)
def test_ways_of_the_loop_that_do_not_fit_are_refused_before_any_data_is_read(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        small(*changes)


def pretrained_on(config: Pretrain, shards: Path, out: Path, **more: Path) -> None:
    from vlm_core.run import run

    run("pretrain", config, {"shards": shards, **more}, out, recipe="tiny")


def test_a_snapshot_without_second_captions_or_with_too_few_pairs_is_refused_before_a_sample_is_read(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    bare = tmp_path / "bare"  # without a single shard: nothing can be read
    bare.mkdir()
    for name in ("manifest.json", "index.parquet"):
        shutil.copy(shards / name, bare / name)
    with pytest.raises(Incompatible, match=r"Found loader.second_caption=\['rewritten'\] with the snapshot .*bare, which has none of them \(it has alt 256\)"):
        pretrained_on(small("objectives.multi_text={}", "loader.second_caption=[rewritten]"), bare, tmp_path / "one")
    with pytest.raises(
        Incompatible, match=r"Found 256 training pairs in the snapshot .* for loader.batch_size 300 \(150 on each of 2 processes\), expected a whole step"
    ):
        pretrained_on(small("loader.batch_size=300", "fit.devices=2"), bare, tmp_path / "two")
    mixed = f"loader.mix={{other: {{shards: {bare}}}}}"
    written = json.loads((bare / "manifest.json").read_text())
    whole = tmp_path / "whole"  # has second captions; the one that is mixed in has not
    whole.mkdir()
    (whole / "manifest.json").write_text(json.dumps({**written, "captions": {"alt": 256, "rewritten": 256}}))
    with pytest.raises(Incompatible, match=r"with the snapshot .*bare, which has none of them"):
        snapshot.check(small("objectives.multi_text={}", "loader.second_caption=[rewritten]", mixed), whole)
    snapshot.check(small("loader.batch_size=300", mixed), bare)  # 512 pairs together
    with pytest.raises(Incompatible, match="Found 512 training pairs in the snapshots .*bare, .*bare for loader.batch_size 600"):
        snapshot.check(small("loader.batch_size=600", mixed), bare)
    with pytest.raises(Incompatible, match="Found 256 training pairs in the snapshot .*bare for loader.batch_size 300"):
        snapshot.check(small("loader.batch_size=300", "loader.debiased=source", mixed), bare)


RESNET = "model.image={kind: clip_resnet, image_size: 32, layers: [1, 1, 1, 1], width: 8, heads: 4}"


def test_batch_norm_on_several_processes_without_gpus_is_refused_before_anything_is_trained(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"Found batch norm in the tower \(image\..*\) with fit.devices=2 on CPUs, expected one process or GPUs"):
        train(settings(small(RESNET, "fit.devices=2", "fit.accelerator=cpu"), shards), tmp_path, Heard())
    assert not list(tmp_path.iterdir())


def test_a_vit_may_learn_on_several_cpus_and_one_process_may_have_batch_norm() -> None:
    for changes, devices in (((), 2), ((RESNET,), 1)):
        model = TwoTower(small(*changes).model).train()
        assert ranks.share_statistics(model, Fit(devices=devices, accelerator="cpu")) is model
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_on_gpus_batch_norm_is_that_of_all_ranks_under_the_same_names_of_weights() -> None:
    model = TwoTower(small(RESNET).model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shared = ranks.share_statistics(model, Fit(devices=2, accelerator="gpu"))
    norms = [module for module in shared.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(module, nn.SyncBatchNorm) for module in norms)
    after = shared.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
