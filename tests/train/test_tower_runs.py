"""Whole runs of towers that bring something of their own: a learnt tokenizer, drawn texts, weights from a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.train.test_pretrain import pretrain
from tests.train.tiny import make_shards, small
from vlm_core.errors import CheckpointError
from vlm_core.models import pretrained, tokenizer
from vlm_core.models.open_clip_parts import create_model
from vlm_core.train.config import Pretrain

BERT = "model.text={kind: bert, context_length: 16, vocab_size: 400, width: 32, layers: 1, heads: 2, dropout: 0}"
RENDERED = "model.text={kind: rendered, image_size: 32, font_size: 6}"
SHARED = "model.text={kind: shared_text, context_length: 16, vocab_size: 400, tokenizer: bpe}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    "changes",
    [
        (BERT,), (SHARED,), (BERT, "objectives.masked_language={weight: 0.05}", "fit.epochs=16"),
        (RENDERED, "model.image.pool=map", "model.image.patch_size=4"),
        pytest.param(("model.image={kind: timm_trunk, name: resnet18, image_size: 32}", "fit.precision=bf16", "optim.lr=0.002"), marks=pytest.mark.slow),
    ],
    ids=["bert", "shared", "masked", "rendered", "resnet"],
)  # fmt: skip
def test_it_learns_which_sentence_belongs_to_which_picture(changes: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    report = pretrain(small("fit.epochs=8", *changes), shards, tmp_path / "model")
    assert report.metrics["quick.auc"] > 0.6  # 0.5 is chance
    assert report.metrics["final_loss"] < 4.16 + (
        0.3 if "masked_language" in str(changes) else 0
    )  # log(64) is chance, and a twentieth of log(400) for a hidden word
    assert pretrained.load(tmp_path / "model").encode_texts(["a red circle on the left"]).isfinite().all()


def test_a_learnt_tokenizer_lies_in_the_model_folder_and_training_goes_on_with_it(shards: Path, tmp_path: Path) -> None:
    pretrain(small(BERT, "fit.epochs=1"), shards, tmp_path / "first")
    first = (tmp_path / "first" / "tokenizer.json").read_bytes()
    pretrain(small(BERT, "fit.epochs=1"), shards, tmp_path / "again")
    assert {file.name for file in (tmp_path / "first").iterdir()} == {"model.safetensors", "config.json", "card.md", "tokenizer.json"}
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    other = make_shards(tmp_path / "other", copies=3, held_out=0.5)
    pretrain(small(BERT, "fit.epochs=1", "optim.lr=1e-9", "loader.batch_size=32"), other, tmp_path / "second", initial=tmp_path / "first")
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == first  # not learnt anew from other captions
    (tmp_path / "first" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"Found no tokenizer\.json in .*first"):
        pretrain(small(BERT, "fit.epochs=1"), shards, tmp_path / "third", initial=tmp_path / "first")


def test_weights_from_a_file_are_the_parent_of_the_model_and_stay_where_they_are_locked(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = create_model("resnet18", pretrained=False).state_dict()
    save_file(theirs, tmp_path / "resnet18.safetensors")
    image = f"model.image={{kind: timm_trunk, name: resnet18, image_size: 32, weights: {tmp_path / 'resnet18.safetensors'}, lock: true}}"
    config: Pretrain = small(image, "fit.epochs=2")
    pretrain(config, shards, tmp_path / "model")
    model = pretrained.load(tmp_path / "model")
    assert [parent["name"] for parent in model.config["parents"]] == ["resnet18.safetensors"]
    for name, value in model.towers.image.trunk.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    assert not tokenizer.is_learnt(config.model.text)
