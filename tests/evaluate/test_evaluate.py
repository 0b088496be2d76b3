"""The evaluator's verb on a small world: every number with its interval, its samples and its card."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from tests.data.small_world import make_shards
from tests.train.transfer_world import TINY, labelled_set, stage_for, tiny_model
from vlm_core.data.eval_sets.eval_sets import read_dataset
from vlm_core.data.shards.shards import read_samples
from vlm_core.errors import DataError, MissingInput
from vlm_core.evaluate.card import read_cards
from vlm_core.evaluate.compare import compare
from vlm_core.evaluate.config import Evaluate
from vlm_core.evaluate.evaluate import evaluate
from vlm_core.evaluate.heldout import read_heldout
from vlm_core.models.captions import caption_log_likelihood
from vlm_core.models.features import features
from vlm_core.models.features_config import Features
from vlm_core.models.pixels import pixels_of
from vlm_core.models.pretrained import load, save
from vlm_core.models.towers import TwoTower
from vlm_core.stage import Report

CONFIG = Evaluate(resamples=1_000, probe_c=[0.1, 10.0])


def run(world: Path, out: Path, model: str = "model", **settings: object) -> Report:
    stage = stage_for(out, "evaluate", model=world / model, shards=world / "shards" / "out", eval_sets=world / "eval_sets")
    return evaluate(CONFIG.merged(settings), stage)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    make_shards(root / "shards")
    labelled_set(root / "eval_sets")
    for seed, name in enumerate(("model", "other")):
        tiny_model(root / name, seed)
    run(root, root / "a")
    run(root, root / "b", model="other")
    return root


def metric(folder: Path, task: str, name: str, column: str = "value") -> float:
    rows = pq.read_table(folder / "out" / "metrics.parquet").to_pandas()
    return float(rows[(rows["task"] == task) & (rows["metric"] == name)][column].iloc[0])


def test_held_out_retrieval_equals_a_plain_loop_over_the_models_own_embeddings(world: Path) -> None:
    vlm, samples = load(world / "model"), sorted(read_samples(world / "shards" / "out", "heldout"), key=lambda sample: sample.uid)
    data = read_heldout(world / "shards" / "out")
    assert data.uids == [sample.uid for sample in samples]  # all pictures and captions of this world differ
    image = vlm.encode_images(list(data.pictures(list(range(len(samples)))))).numpy()
    text = vlm.encode_texts([sample.record["caption"] for sample in samples]).numpy()
    scores = image @ text.T
    for k in (1, 5, 10):
        by_image = np.mean([(scores[i] >= scores[i, i]).sum() <= k for i in range(len(samples))])
        by_text = np.mean([(scores[:, i] >= scores[i, i]).sum() <= k for i in range(len(samples))])
        assert metric(world / "a", "retrieval", f"text_retrieval_recall_at_{k}") == pytest.approx(by_image)
        assert metric(world / "a", "retrieval", f"image_retrieval_recall_at_{k}") == pytest.approx(by_text)
    wrong = ~np.eye(len(samples), dtype=bool)
    auc = np.mean([(scores[i, i] > scores[wrong]).mean() for i in range(len(samples))])
    assert metric(world / "a", "matching", "auc") == pytest.approx(auc, abs=2e-3)


def test_zero_shot_and_probe_equal_a_plain_computation(world: Path) -> None:
    vlm, data = load(world / "model"), read_dataset(world / "eval_sets" / "colours")
    unit = {split: vlm.encode_images(list(data.images(data.rows(split)))).numpy() for split in ("train", "val", "test")}
    labels = {split: data.labels[data.rows(split)] for split in unit}
    text = vlm.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in data.classnames]).numpy()
    assert metric(world / "a", "zero_shot_single", "acc1") == pytest.approx(((unit["test"] @ text.T).argmax(1) == labels["test"]).mean())
    assert 0 <= metric(world / "a", "zero_shot_ensemble", "acc1") <= 1
    best = LogisticRegression(C=10.0, max_iter=200).fit(unit["train"] * 50, labels["train"])
    assert best.score(unit["test"] * 50, labels["test"]) >= 0.9  # the colours can be told apart,
    assert metric(world / "a", "linear_probe", "acc1") >= 0.9  # and the evaluator's probe does so


def test_every_number_has_an_interval_and_the_card_it_was_measured_under(world: Path) -> None:
    rows = pq.read_table(world / "a" / "out" / "metrics.parquet").to_pandas()
    assert ((rows["ci_low"] <= rows["value"] + 1e-12) & (rows["value"] <= rows["ci_high"] + 1e-12)).all()
    cards = read_cards(world / "a" / "out" / "cards")
    assert set(rows["card_id"]) == set(cards)
    assert {card.task for card in cards.values()} == {"retrieval", "matching", "zero_shot_single", "zero_shot_ensemble", "linear_probe"}
    single, ensemble = (next(card for card in cards.values() if card.task == f"zero_shot_{kind}") for kind in ("single", "ensemble"))
    assert (single.template_count, ensemble.template_count) == (1, 2)
    assert single.image_preprocess["size_px"] == 16
    assert "| heldout | matching | auc |" in (world / "a" / "out" / "report.md").read_text()


def test_two_models_of_one_kind_are_compared_on_the_same_samples(world: Path) -> None:
    rows = {row.suite: row for row in compare(world / "a" / "out", world / "b" / "out", 1_000)}
    suite = rows["heldout/matching/auc"]
    assert suite.difference == pytest.approx(metric(world / "b", "matching", "auc") - metric(world / "a", "matching", "auc"))
    assert suite.ci_low <= suite.difference <= suite.ci_high
    assert all(row.p <= row.p_holm for row in rows.values())


def test_the_same_evaluation_writes_the_same_bytes(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path)
    for file in sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert file.read_bytes() == (world / "a" / "out" / file.relative_to(tmp_path / "out")).read_bytes(), file.name


def test_a_set_that_is_not_there_is_named_with_its_neighbours(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Found no labelled set 'colors'.*did you mean 'colours'"):
        run(world, tmp_path, datasets=["colors"])
    with pytest.raises(MissingInput, match="run 'vlm eval-sets' first"):
        evaluate(CONFIG, stage_for(tmp_path, "evaluate", model=world / "model", shards=world / "shards" / "out", eval_sets=tmp_path))


def test_pictures_that_the_features_hold_are_not_encoded_again(world: Path, tmp_path: Path) -> None:
    sets = world / "eval_sets"
    features(Features(views=0), stage_for(tmp_path / "f", "features", model=world / "model", eval_sets=sets))
    stored = next((tmp_path / "f" / "out").glob("*/test.safetensors"))
    labels_N, single_CD = load_file(stored)["labels_N"], load_file(stored.with_name("text.safetensors"))["single_CD"]
    save_file({"image_ND": single_CD[labels_N], "labels_N": labels_N}, stored)  # every picture where its class name is: all answers are right
    inputs = {"model": world / "model", "shards": world / "shards" / "out", "eval_sets": sets, "features": tmp_path / "f" / "out"}
    evaluate(CONFIG, stage_for(tmp_path / "e", "evaluate", **inputs))
    assert metric(tmp_path / "e", "zero_shot_single", "acc1") == 1.0 > metric(world / "a", "zero_shot_single", "acc1")
    evaluate(CONFIG, stage_for(tmp_path / "o", "evaluate", **{**inputs, "model": world / "other"}))
    assert metric(tmp_path / "o", "zero_shot_single", "acc1") == metric(world / "b", "zero_shot_single", "acc1")


def test_a_model_with_a_decoder_classifies_by_what_it_would_say(world: Path, tmp_path: Path) -> None:
    towers = TwoTower(TINY.but("decoder={layers: 1, heads: 2}"))
    (tmp_path / "writer").mkdir()
    save(tmp_path / "writer", towers, pixels_of(TINY.image), {"recipe": "tiny", "seed": 0})
    stage = stage_for(tmp_path / "c", "evaluate", model=tmp_path / "writer", shards=world / "shards" / "out", eval_sets=world / "eval_sets")
    evaluate(CONFIG.merged({"caption_likelihood": True, "probe": False}), stage)
    data = read_dataset(world / "eval_sets" / "colours")
    said = [data.templates[0].format(name.replace("_", " ")) for name in data.classnames]
    scores = caption_log_likelihood(load(tmp_path / "writer"), list(data.images(data.rows("test"))), said)
    expected = float((scores.argmax(1).numpy() == data.labels[data.rows("test")]).mean())
    assert metric(tmp_path / "c", "caption_likelihood", "acc1") == pytest.approx(expected)
