"""The transfer loop and its verb: what it may see, what it stores, and that it learns."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.transfer_world import labelled_set, stage_for, tiny_model
from vlm_core.errors import CheckpointError, ConfigError, DataError, NumericsError
from vlm_core.evaluate.card import read_cards
from vlm_core.evaluate.compare import compare
from vlm_core.models.feature_store import Stored
from vlm_core.models.features import features
from vlm_core.models.features_config import Features
from vlm_core.models.pretrained import load
from vlm_core.stage import Report
from vlm_core.train.adapt import adapt, coop_epochs
from vlm_core.train.config import Transfer
from vlm_core.train.transfer import draw_support, transfer
from vlm_core.transfer.base import Support, TransferMethod
from vlm_core.transfer.config import Coop, LinearProbe, TipAdapter, TipAdapterF, Training, ZeroShot

SMALL = {"shots": [1, 4], "seeds": [1, 2, 3], "dataset": "colours", "resamples": 1_000}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, one labelled set, and its features with two augmented views."""
    root = tmp_path_factory.mktemp("transfer")
    tiny_model(root / "model")
    labelled_set(root / "eval_sets")
    features(Features(views=2), stage_for(root / "features", "features", model=root / "model", eval_sets=root / "eval_sets"))
    return root


def run(world: Path, out: Path, features_dir: Path | None = None, **settings: object) -> Report:
    stage = stage_for(out, "transfer", model=world / "model", features=features_dir or world / "features" / "out")
    return transfer(Transfer.read({**SMALL, **settings}), stage)


def test_stored_features_are_those_of_the_model_in_the_order_of_the_table(world: Path) -> None:
    from vlm_core.data.eval_sets.eval_sets import read_dataset

    stored, dataset = Stored(world / "features" / "out" / "colours"), read_dataset(world / "eval_sets" / "colours")
    rows = dataset.rows("test")
    test = stored.split("test")
    assert test.keys == [dataset.keys[i] for i in rows]
    unit_ND = load(world / "model").encode_images(list(dataset.images(rows)), batch=2)
    torch.testing.assert_close(torch.nn.functional.normalize(test.image_ND, dim=-1), unit_ND, rtol=1e-4, atol=1e-5)
    assert stored.views_VND.shape == (3, 18, 12)
    assert not torch.equal(stored.views_VND[1], stored.views_VND[0])
    torch.testing.assert_close(
        stored.single_CD,
        load(world / "model").encode_texts(["a photo of a red thing.", "a photo of a green thing.", "a photo of a blue thing."]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_fitting_cannot_depend_on_the_test_split(world: Path, tmp_path: Path) -> None:
    """The same run over poisoned test pictures and labels: every adapted tensor is the same to the last bit."""
    import shutil

    poisoned = tmp_path / "features"
    shutil.copytree(world / "features" / "out", poisoned)
    test = load_file(poisoned / "colours" / "test.safetensors")
    save_file({"image_ND": torch.randn_like(test["image_ND"]), "labels_N": test["labels_N"].flip(0)}, poisoned / "colours" / "test.safetensors")
    for kind in ("tip_adapter", "tip_adapter_f", "linear_probe"):
        run(world, tmp_path / "a" / kind, method={"kind": kind}, seeds=[1])
        run(world, tmp_path / "b" / kind, poisoned, method={"kind": kind}, seeds=[1])
        for file in sorted((tmp_path / "a" / kind / "out" / "adapted").iterdir()):
            assert file.read_bytes() == (tmp_path / "b" / kind / "out" / "adapted" / file.name).read_bytes()
    assert "test" not in {name.lower() for name in Support.__dataclass_fields__}


def test_the_draw_gives_shots_per_class_or_all_there_are_and_says_so(world: Path) -> None:
    stored = Stored(world / "features" / "out" / "colours")
    support, said = draw_support(Transfer.read(SMALL), stored, None, 4, seed=1)
    assert torch.bincount(support.labels_N).tolist() == [4, 4, 4]
    assert said == {"drawn": 12, "fewest_per_class": 4, "most_per_class": 4, "validation": 12}
    support, said = draw_support(Transfer.read(SMALL), stored, None, 16, seed=1)
    assert (said["drawn"], said["most_per_class"]) == (18, 6)
    assert draw_support(Transfer.read(SMALL), stored, None, 0, seed=0)[1]["validation"] == 12


def test_a_run_stores_every_prediction_two_intervals_and_its_card(world: Path, tmp_path: Path) -> None:
    report = run(world, tmp_path, method={"kind": "tip_adapter"})
    out = tmp_path / "out"
    rows, metrics = pq.read_table(out / "predictions.parquet").to_pandas(), pq.read_table(out / "metrics.parquet").to_pandas()
    assert len(rows) == 2 * 3 * 15
    for shots in (1, 4):
        mean = metrics[(metrics["shots"] == shots) & metrics["seed"].isna()].iloc[0]
        own = rows[(rows["task"] == f"{shots}_shot")]
        assert mean["value"] == pytest.approx(own["correct"].mean())
        assert mean["ci_low"] <= mean["value"] <= mean["ci_high"]
        per_seed = own.groupby("seed")["correct"].mean()
        half = 4.302653 * per_seed.std(ddof=1) / np.sqrt(3)
        assert mean["seed_ci_high"] - mean["value"] == pytest.approx(half, abs=1e-6)
        assert ((own["prediction"] == own["label"]) == (own["correct"] == 1)).all()
    cards = read_cards(out / "cards")
    assert set(cards) == set(metrics["card_id"]) == set(rows["card_id"])
    assert {(card.shots, tuple(card.seeds)) for card in cards.values()} == {(1, (1, 2, 3)), (4, (1, 2, 3))}
    assert report.catalog["metrics"].column_names[0] == "model_id"
    assert (tmp_path / "pictures" / "curve.png").stat().st_size > 5_000


def test_methods_of_one_protocol_can_be_compared_and_shots_cannot(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "a", method={"kind": "tip_adapter"})
    run(world, tmp_path / "b", method={"kind": "linear_probe"})
    assert [row.suite for row in compare(tmp_path / "a" / "out", tmp_path / "b" / "out", 1_000)] == ["colours/1_shot/acc1", "colours/4_shot/acc1"]


def test_colours_are_learnt_from_few_shots_although_the_towers_are_random(world: Path, tmp_path: Path) -> None:
    report = run(world, tmp_path, method={"kind": "linear_probe"})
    assert report.metrics["acc1/4_shots"] >= 0.9


def test_zero_shot_is_one_run_without_shots_or_seeds(world: Path, tmp_path: Path) -> None:
    report = run(world, tmp_path, method={"kind": "zero_shot"})
    assert report.counts["runs"] == 1
    assert report.metrics["acc1/0_shots"] == report.metrics["acc1/zero_shot_text"]


def test_the_same_run_writes_the_same_bytes(world: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(world, tmp_path / name, method={"kind": "coop", "tokens": 2, "training": {"epochs": 2}}, shots=[2])
    for file in sorted(path for path in (tmp_path / "a" / "out").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / "out" / file.relative_to(tmp_path / "a" / "out")).read_bytes()


def test_an_adapted_coop_names_its_model_and_stores_only_the_context(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, method={"kind": "coop", "tokens": 2, "training": {"epochs": 1}}, shots=[1], seeds=[1])
    assert {name: tuple(value.shape) for name, value in load_file(tmp_path / "out" / "adapted" / "1-1.safetensors").items()} == {"context": (2, 16)}
    about = json.loads((tmp_path / "out" / "adapted" / "method.json").read_text())
    assert about["model"] == load(world / "model").digest
    assert about["classnames"][1] == "green_thing"


def test_features_of_another_model_are_refused(world: Path, tmp_path: Path) -> None:
    tiny_model(tmp_path / "other", seed=1)
    stage = stage_for(tmp_path / "run", "transfer", model=tmp_path / "other", features=world / "features" / "out")
    with pytest.raises(CheckpointError, match="run 'vlm features' with this model"):
        transfer(Transfer.read(SMALL), stage)


def test_a_misspelt_set_and_wrong_counts_are_refused_in_one_sentence(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'colours'"):
        run(world, tmp_path, dataset="colors")
    with pytest.raises(ConfigError, match=r"Found shots \[4, 4\], expected different numbers"):
        Transfer.read({"shots": [4, 4]})
    with pytest.raises(ConfigError, match="did you mean 'tip_adapter'"):
        Transfer.read({"method": {"kind": "tip_adaptor"}})


# ---------------------------------------------------------------- the loop


def toy_support(seed: int = 0, views: int = 2) -> Support:
    random = torch.Generator().manual_seed(seed)
    centres = torch.eye(3, 8) * 4
    labels = torch.arange(3).repeat_interleave(4)
    draw = lambda labels: centres[labels] + torch.randn(len(labels), 8, generator=random)  # noqa: E731
    text = torch.nn.functional.normalize(torch.randn(3, 8, generator=random), dim=-1)
    return Support(torch.stack([draw(labels) for _ in range(views)]), labels, draw(labels), labels, text, text, ["a", "b", "c"], seed=seed)


def test_epochs_follow_the_shots_as_in_coop() -> None:
    assert [coop_epochs(shots) for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


def test_a_loss_that_is_not_a_number_stops_with_its_step_and_term() -> None:
    from vlm_core.transfer.tip_adapter_f import build

    support = toy_support()
    support.views_VND[:, 3] = torch.nan
    with pytest.raises(NumericsError, match=r"at step 0 \(cross_entropy nan\)"):
        adapt(build(TipAdapterF(), support), support, 4)


def test_the_loop_takes_the_rates_of_its_schedule_and_leaves_out_the_rest_of_an_epoch() -> None:
    """One weight with gradient 1 under plain SGD walks down by exactly the learning rates: 2 steps of 5 in each of 3 epochs of 12 shots."""

    class Walker(TransferMethod):
        training_settings = Training(lr=1.0, momentum=0, weight_decay=0, epochs=3, batch=5, warmup_epochs=1, warmup_lr=0.25)

        def __init__(self) -> None:
            super().__init__()
            self.at = torch.nn.Parameter(torch.zeros(()))

        def logits(self, image_BD: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

        def loss(self, image_BD: torch.Tensor, labels_B: torch.Tensor) -> dict[str, torch.Tensor]:
            assert len(labels_B) == 5
            return {"walk": self.at}

    walker = Walker()
    adapt(walker, toy_support(), 4)
    assert walker.at.item() == pytest.approx(-2 * (0.25 + 1.0 + (1 + np.cos(np.pi / 3)) / 2), rel=1e-6)


def test_methods_that_do_not_descend_have_no_training_settings() -> None:
    from vlm_core.config import build

    support = toy_support()
    assert [build(config, support=support).training_settings for config in (ZeroShot(), LinearProbe(), TipAdapter())] == [None] * 3
    assert Coop().training.epochs is None
