"""Fusion and decoder: what they see and do not see, that they live in the model folder, and what a model says with them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.objectives.world import ids
from vlm_core.errors import Incompatible
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.captions import caption_log_likelihood, captions_of, match_probability
from vlm_core.models.pixels import pixels_of
from vlm_core.models.tokenizer import special_of
from vlm_core.models.towers import TwoTower

KINDS = {"joint": menu.JointFusion(width=16, layers=2, heads=2), "gated": menu.GatedFusion(blocks=2)}
TEXTS = [[5, 7], [3], [9, 8, 4, 2]]
NEEDS = frozenset({"fusion"})


def model(fusion: menu.JointFusion | menu.GatedFusion | None, vocabulary: int = 40, **more: object) -> TwoTower:
    """Of different widths and depths on both sides. Gates are opened, as training does."""
    torch.manual_seed(0)
    config = menu.TwoTower.read({
        "image": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2},
        "text": {"kind": "clip_transformer", "context_length": 12, "vocab_size": vocabulary, "width": 24, "layers": 3, "heads": 2},
        "width": 8, "fusion": None if fusion is None else fusion.model_dump(), **more,
    })  # fmt: skip
    towers = TwoTower(config).eval()
    for name, value in towers.named_parameters():
        if name.endswith("alpha"):
            value.data.fill_(0.7)
    return towers


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_fusing_leaves_the_two_towers_what_they_are(kind: str) -> None:
    towers, batch = model(KINDS[kind]), {"images": pictures(3), "ids": ids(TEXTS)}
    alone, fusing = towers(batch), towers(batch, NEEDS)
    assert torch.equal(fusing.image_BD, alone.image_BD)
    assert torch.equal(fusing.text_BD, alone.text_BD)
    fused = towers.fuse(fusing.begun_BPE, fusing.begun_BLE, batch["ids"])
    assert fused.image_BPW.shape == (3, 17, towers.fusion.image_width)
    assert fused.text_BLW.shape == (3, 6, towers.fusion.text_width)
    assert fused.class_BW.shape == (3, towers.fusion.class_width)


def test_closed_gates_are_the_dual_encoder_exactly_and_open_ones_are_not() -> None:
    towers, batch = model(KINDS["gated"]), {"images": pictures(3), "ids": ids(TEXTS)}
    out = towers(batch, NEEDS)
    opened = towers.fuse(out.begun_BPE, out.begun_BLE, batch["ids"])
    for looks in (*towers.fusion.image_looks, *towers.fusion.text_looks):
        looks.alpha.data.zero_()
    closed = towers.fuse(out.begun_BPE, out.begun_BLE, batch["ids"])
    assert torch.equal(closed.image_BPW[:, 1:], out.patches_BPE)
    assert torch.equal(closed.text_BLW, out.tokens_BLE)
    assert float((opened.text_BLW - closed.text_BLW).abs().max().detach()) > 1e-3
    assert [float(gate.alpha.detach()) for gate in TwoTower(towers.config).fusion.image_looks] == [0.0, 0.0]


def test_closed_gates_learn() -> None:
    towers, batch = model(KINDS["gated"]), {"images": pictures(3), "ids": ids(TEXTS)}
    for looks in (*towers.fusion.image_looks, *towers.fusion.text_looks):
        looks.alpha.data.zero_()
    out = towers(batch, NEEDS)
    towers.fusion.match_logits(towers.fuse(out.begun_BPE, out.begun_BLE, batch["ids"]).class_BW)[:, 1].sum().backward()
    assert all(float(looks.alpha.grad.abs()) > 0 for looks in (*towers.fusion.image_looks, *towers.fusion.text_looks))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_seen_by_nobody(kind: str) -> None:
    towers, images, short = model(KINDS[kind]), pictures(3), ids(TEXTS)
    longer = torch.cat([short, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    fused = [towers.fuse(*towers.begin(images, each), each) for each in (short, longer)]
    torch.testing.assert_close(fused[1].class_BW, fused[0].class_BW, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused[1].image_BPW, fused[0].image_BPW, rtol=1e-5, atol=1e-6)
    alone = towers.fuse(*towers.begin(images[1:2], ids([TEXTS[1]])), ids([TEXTS[1]]))
    torch.testing.assert_close(fused[0].class_BW[1:2], alone.class_BW, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_pair_depends_on_picture_and_text(kind: str) -> None:
    towers, images, words = model(KINDS[kind]), pictures(2), ids([[5, 7], [3, 9]])
    begun_BPE, begun_BLE = towers.begin(images, words)
    own, other_text, other_image = (
        towers.fuse(begun_BPE[[rows[0]]], begun_BLE[[rows[1]]], words[[rows[1]]]) for rows in ((0, 0), (0, 1), (1, 0))
    )  # fmt: skip
    assert float((own.class_BW - other_text.class_BW).abs().max().detach()) > 1e-3
    assert float((own.class_BW - other_image.class_BW).abs().max().detach()) > 1e-3
    assert float((own.image_BPW - other_text.image_BPW).abs().max().detach()) > 1e-3
    assert float((own.text_BLW - other_image.text_BLW).abs().max().detach()) > 1e-3


def test_the_joint_sequence_is_class_then_picture_then_text() -> None:
    towers, images, words = model(KINDS["joint"]), pictures(2), ids([[5, 7], [3, 9]])
    begun_BPE, begun_BLE = towers.begin(images, words)
    rows: list[torch.Tensor] = []
    towers.fusion.blocks[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    towers.fuse(begun_BPE, begun_BLE, words)
    assert torch.equal(rows[0][:, 0], towers.fusion.class_embedding[0].expand(2, -1))
    assert torch.equal(rows[0][:, 1:18], towers.fusion.see(begun_BPE))  # class token of the picture, then 16 patches
    assert torch.equal(rows[0][:, -4:], towers.fusion.read(begun_BLE))


@pytest.mark.parametrize("kind", KINDS)
def test_rough_precision_stays_near(kind: str) -> None:
    towers, images, words = model(KINDS[kind]), pictures(3), ids(TEXTS)
    exact = towers.fuse(*towers.begin(images, words), words).class_BW
    with torch.autocast("cpu", torch.bfloat16):
        rough = towers.fuse(*towers.begin(images, words), words).class_BW
    assert float(torch.nn.functional.cosine_similarity(exact, rough.float()).min().detach()) > 0.99


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("queries", [None, 3])
def test_a_word_is_written_from_earlier_words_and_the_picture_only(queries: int | None) -> None:
    towers, images = model(None, decoder={"layers": 2, "heads": 2, "queries": queries}), pictures(2)
    seen_BKE = towers.decoder.see(towers.image.tokens(images)[:, 1:])
    assert seen_BKE.shape == (2, queries or 16, 24)
    first, second = ids([[5, 7, 9], [5, 7, 9]]), ids([[5, 7, 2], [5, 7, 9]])
    states = [towers.decoder(seen_BKE, towers.text.states(towers.text.embed(each))) for each in (first, second)]
    torch.testing.assert_close(states[0][0, :3], states[1][0, :3], rtol=1e-5, atol=1e-6)
    assert float((states[0][0, 3] - states[1][0, 3]).abs().max().detach()) > 1e-3
    assert float((states[0][0, 0] - states[0][1, 0]).abs().max().detach()) > 1e-3  # same words, other picture


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwoTower, pretrained.Vlm]:
    """Towers that learnt two captions by heart, and what comes back from their folder."""
    towers = model(KINDS["joint"], 49408, decoder={"layers": 1, "heads": 2})
    folder = tmp_path_factory.mktemp("model")
    transform = pixels_of(towers.config.image)
    pretrained.save(folder, towers, transform, {"recipe": "tiny", "parents": []})
    vlm = pretrained.load(folder)
    images = torch.stack([vlm.transform()(image) for image in squares()])
    words = vlm.tokenize(["a red square", "blue"])
    towers.train()
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.01)
    for _ in range(60):
        states = towers.decoder(towers.decoder.see(towers.image.tokens(images)[:, 1:]), towers.text.states(towers.text.embed(words))[:, :-1])
        real = words[:, 1:] != 0
        loss = torch.nn.functional.cross_entropy(towers.decoder.say(states[real]), words[:, 1:][real])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pretrained.save(folder, towers.eval(), transform, {"recipe": "tiny", "parents": []})
    return towers, pretrained.load(folder)


def squares() -> list[Image.Image]:
    """On a ground that is no plain colour, in which LayerNorm would magnify the rounding."""
    ground = Image.merge("RGB", [Image.linear_gradient("L").rotate(turn).resize((32, 32)) for turn in (0, 90, 180)])
    pictures = [ground.copy(), ground.copy()]
    for image, colour in zip(pictures, ((220, 20, 20), (20, 20, 220)), strict=True):
        image.paste(colour, (8, 8, 24, 24))
    return pictures


def test_fusion_and_decoder_come_back_from_the_model_folder(saved: tuple[TwoTower, pretrained.Vlm]) -> None:
    towers, vlm = saved
    assert vlm.towers.config == towers.config
    back = vlm.towers.state_dict()
    for name, value in towers.state_dict().items():
        assert torch.equal(back[name], value), name
    assert {"fusion.class_embedding", "fusion.decide.weight", "decoder.say.weight"} <= back.keys()


def test_a_model_writes_the_captions_that_it_learnt(saved: tuple[TwoTower, pretrained.Vlm]) -> None:
    assert captions_of(saved[1], squares()) == ["a red square", "blue"]
    assert captions_of(saved[1], squares()[:1], prompt="a") == ["red square"]
    assert captions_of(saved[1], squares(), most=1) == ["a", "blue"]


def test_likelihood_is_the_mean_log_probability_of_the_words_and_classifies(saved: tuple[TwoTower, pretrained.Vlm]) -> None:
    vlm, texts = saved[1], ["a red square", "blue", "something else entirely"]
    found = caption_log_likelihood(vlm, squares(), texts)
    assert found.shape == (2, 3)
    assert found.argmax(1).tolist() == [0, 1]
    words = vlm.tokenize(["blue"])[:, :3]
    with torch.no_grad():
        image = torch.stack([vlm.transform()(squares()[1])])
        states = vlm.towers.decoder(vlm.towers.decoder.see(vlm.towers.image.tokens(image)[:, 1:]), vlm.towers.text.states(vlm.towers.text.embed(words))[:, :-1])
        log = vlm.towers.decoder.say(states).double().log_softmax(-1)
    by_hand = (log[0, 0, words[0, 1]] + log[0, 1, special_of(vlm.towers.config.text).end]) / 2
    assert float(found[1, 1]) == pytest.approx(float(by_hand), abs=1e-5)
    given = caption_log_likelihood(vlm, squares()[1:], ["blue"], prompt="a")
    words = vlm.tokenize(["a blue"])[:, :4]
    with torch.no_grad():
        states = vlm.towers.decoder(vlm.towers.decoder.see(vlm.towers.image.tokens(image)[:, 1:]), vlm.towers.text.states(vlm.towers.text.embed(words))[:, :-1])
        log = vlm.towers.decoder.say(states).double().log_softmax(-1)
    assert float(given[0, 0]) == pytest.approx(float(log[0, 1, words[0, 2]] + log[0, 2, words[0, 3]]) / 2, abs=1e-5)


def test_how_likely_a_pair_is_depends_on_nothing_but_the_pair(saved: tuple[TwoTower, pretrained.Vlm]) -> None:
    both = match_probability(saved[1], squares(), ["a red square", "blue"])
    one = match_probability(saved[1], squares()[1:], ["blue"])
    assert float(both[1]) == pytest.approx(float(one[0]), abs=1e-5)
    assert bool(((both > 0) & (both < 1)).all())


def test_a_model_without_the_part_says_so(tmp_path: Path) -> None:
    towers = model(None, 49408)
    pretrained.save(tmp_path, towers, pixels_of(towers.config.image), {"recipe": "tiny", "parents": []})
    vlm = pretrained.load(tmp_path)
    with pytest.raises(Incompatible, match=r"model.decoder=null, expected one that was trained with objectives.captioning or prefix_generation"):
        captions_of(vlm, squares())
    with pytest.raises(Incompatible, match=r"model.fusion=null, expected one that was trained with objectives.image_text_matching"):
        match_probability(vlm, squares(), ["a", "b"])
