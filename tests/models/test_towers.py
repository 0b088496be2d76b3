"""Towers: interchangeable with open_clip, indifferent to padding, locked where they should be."""

import math

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.config import build
from vlm_core.errors import ConfigError, Incompatible
from vlm_core.models import config as menu
from vlm_core.models import packaged
from vlm_core.models.efficientnet_lite0 import bridge
from vlm_core.models.headed import Head, Headed
from vlm_core.models.tokenizer import BytePair, WordPiece, trim
from vlm_core.models.towers import TwoTower, unit

TINY = menu.TwoTower(
    image=menu.Vit(image_size=16, patch_size=8, width=16, layers=2, heads=2),
    text=menu.ClipTransformer(context_length=12, vocab_size=49408, width=16, layers=2, heads=2),
    width=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TINY).eval()


@pytest.fixture(scope="module")
def packaged_towers() -> TwoTower:
    torch.manual_seed(0)
    settings = menu.TwoTower(image=menu.EfficientnetLite0(image_size=64, hidden=32, precision="32"), text=menu.Minilm(hidden=32), width=16)
    return TwoTower(settings).eval()


# ---------------------------------------------------------------- from scratch


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_weights_move_to_open_clip_by_prefix_only_and_give_the_same_embeddings(activation: menu.Activation) -> None:
    ours = TwoTower(TINY.model_copy(update={"activation": activation})).eval()
    theirs = open_clip.CustomTextCLIP(
        embed_dim=8, quick_gelu=activation == "quick_gelu",
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        text_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "layers": 2, "heads": 2},
    ).eval()  # fmt: skip
    prefixes = {"image.": "visual.", "text.": "text."}
    renamed = {new + name.removeprefix(old): value for old, new in prefixes.items() for name, value in ours.state_dict().items() if name.startswith(old)}
    theirs.load_state_dict({**renamed, "logit_scale": ours.log_scale.detach()})
    images_B3HW, ids_BL = torch.randn(3, 3, 16, 16), BytePair(12)(["a cat", "two dogs and a bird", "x"])
    with torch.no_grad():
        torch.testing.assert_close(ours.image(images_B3HW), theirs.encode_image(images_B3HW), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.text(ids_BL), theirs.encode_text(ids_BL), rtol=1e-5, atol=1e-6)


def test_a_clip_resnet_tower_has_the_official_shape_of_rn50() -> None:
    tower = build(menu.ClipResnet(), width=1024, activation="gelu")
    assert sum(value.numel() for value in tower.parameters()) == 38_316_896  # CLIP RN50's visual part
    small = build(menu.ClipResnet(image_size=32, layers=[1, 1, 1, 1], width=8, heads=4), width=5, activation="gelu").eval()
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_columns_of_padding_may_be_dropped(tiny: TwoTower) -> None:
    ids_BL = BytePair(12)(["a cat", "two dogs and a bird"])
    assert trim(ids_BL).shape == (2, 7)
    with torch.no_grad():
        torch.testing.assert_close(tiny.text(trim(ids_BL)), tiny.text(ids_BL), rtol=1e-5, atol=1e-6)


def test_nothing_after_the_end_token_matters(tiny: TwoTower) -> None:
    ids_BL = BytePair(12)(["a cat"])
    noisy_BL = ids_BL.clone()
    noisy_BL[0, 4:] = 500  # lower than the end token, as every id is
    with torch.no_grad():
        torch.testing.assert_close(tiny.text(noisy_BL), tiny.text(ids_BL), rtol=1e-5, atol=1e-6)


def test_learnt_contexts_enter_at_the_token_embeddings(tiny: TwoTower) -> None:
    ids_BL = BytePair(12)(["x x cat", "x x dog"])
    tokens_BLE = tiny.text.embed(ids_BL).detach()
    context_ME = tokens_BLE[0, 1:3].clone().requires_grad_()
    prompts_BLE = torch.cat([tokens_BLE[:, :1], context_ME.expand(2, -1, -1), tokens_BLE[:, 3:]], dim=1)
    out_BD = tiny.text.from_embeddings(prompts_BLE, ids_BL)
    torch.testing.assert_close(out_BD, tiny.text(ids_BL), rtol=1e-5, atol=1e-6)
    out_BD.sum().backward()
    assert context_ME.grad is not None
    assert float(context_ME.grad.abs().min()) > 0


def test_the_logit_scale_is_clamped_on_both_sides(tiny: TwoTower) -> None:
    towers = TwoTower(TINY)
    for wild, kept in ((9.0, 100.0), (-3.0, 1.0), (math.log(20), 20.0)):
        towers.log_scale.data.fill_(wild)
        towers.clamp_scale()
        assert float(towers.scale.detach()) == pytest.approx(kept, rel=1e-6)


def test_embeddings_are_unit_float32_whatever_the_towers_gave() -> None:
    x_BD = (torch.randn(5, 7) * 30).bfloat16()
    assert unit(x_BD).dtype == torch.float32
    torch.testing.assert_close(unit(x_BD).norm(dim=-1), torch.ones(5))
    assert unit(x_BD.double()).dtype == torch.float64


# ---------------------------------------------------------------- tokens


def test_byte_pairs_are_those_of_clip() -> None:
    tokenize = BytePair(8)
    assert tokenize(["A photo of a  cat"]).tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407, 0]]
    cut_BL = tokenize(["a b c d e f g h i j"])
    assert cut_BL[0, -1] == 49407  # a text that is too long keeps its end
    assert tokenize([]).shape == (0, 8)


def test_word_pieces_are_those_of_bert_and_padded_with_zero() -> None:
    assert WordPiece(6)(["A cat"]).tolist() == [[101, 1037, 4937, 102, 0, 0]]
    assert WordPiece(4)(["one two three four five"])[0].tolist()[::3] == [101, 102]


# ---------------------------------------------------------------- packaged


def test_the_bridge_is_the_weighted_mean_of_the_likeliest_names() -> None:
    names_CE = torch.eye(7)
    logits_BC = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    expected_E = torch.tensor([0.0, 0.0, *[math.exp(x) for x in (2, 3, 4, 5, 6)]])
    torch.testing.assert_close(bridge(logits_BC, names_CE)[0], expected_E / expected_E.norm(), rtol=1e-5, atol=1e-7)


def test_packaged_towers_speak_the_sentence_encoder_and_what_they_learn_side_by_side(packaged_towers: TwoTower) -> None:
    tokenizer, model, _ = packaged.minilm()
    texts = ["a red apple", "a very long train in the mountains of a far away country"]
    with torch.no_grad():
        embedding_BD = packaged_towers.text(trim(WordPiece(64)(texts)))
    torch.testing.assert_close(embedding_BD[:, :384], packaged.sentence_vectors(tokenizer, model, texts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding_BD[:, 384:].norm(dim=-1), torch.ones(2))
    with torch.no_grad():
        image_BD = packaged_towers.image(torch.rand(2, 3, 64, 64))
    assert image_BD.shape == (2, 384 + 16)
    torch.testing.assert_close(image_BD[:, :384].norm(dim=-1), torch.ones(2))


def test_a_locked_trunk_stays_in_eval_mode_and_only_the_head_learns(packaged_towers: TwoTower) -> None:
    packaged_towers.train()
    for tower in (packaged_towers.image, packaged_towers.text):
        assert isinstance(tower, Headed)
        assert tower.head.training
        assert not any(module.training for module in tower.trunk.modules())
        assert {name.split(".")[0] for name, value in tower.named_parameters() if value.requires_grad} == {"head"}
    packaged_towers.eval()


def test_a_locked_text_trunk_still_carries_the_gradient_to_learnt_contexts(packaged_towers: TwoTower) -> None:
    ids_BL = trim(WordPiece(64)(["x x cat"]))
    tokens_BLE = packaged_towers.text.embed(ids_BL).detach().requires_grad_()
    out_BD = packaged_towers.text.from_embeddings(tokens_BLE, ids_BL)
    torch.testing.assert_close(out_BD, packaged_towers.text(ids_BL), rtol=1e-4, atol=1e-5)
    out_BD[0, :5].sum().backward()
    assert tokens_BLE.grad is not None
    assert bool((tokens_BLE.grad.abs().amax(-1) > 0).all())


def test_a_head_gives_both_parts_the_same_say() -> None:
    head = Head(menu.Minilm(head="linear"), 10, 4, own=6)
    a_BD, b_BD = (F.normalize(head(torch.randn(3, 10)), dim=-1) for _ in range(2))
    learnt, own = slice(6, 10), slice(0, 6)

    def cosine(part: slice) -> Tensor:
        return F.cosine_similarity(a_BD[:, part], b_BD[:, part], dim=-1)

    torch.testing.assert_close((a_BD * b_BD).sum(-1), (cosine(learnt) + cosine(own)) / 2)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"kind": "vit", "width": 100, "heads": 3}, "Found width 100 and heads 3, expected a whole multiple"),
        ({"kind": "vit", "image_size": 65, "patch_size": 8}, "Found image_size 65 and patch_size 8"),
        ({"kind": "vti"}, "did you mean 'vit'"),
        ({"kind": "clip_resnet", "layers": [1, 2]}, "layers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        menu.TwoTower.read({"image": values})


def test_half_a_bridge_is_refused() -> None:
    with pytest.raises(Incompatible, match="image names=True with text sentence=False"):
        menu.TwoTower.read({"image": {"kind": "efficientnet_lite0"}})
