"""Every kind of tower keeps the promises of towers; those that share weights own them once."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vlm_core.config import build, kinds
from vlm_core.errors import CheckpointError, ConfigError, Incompatible, MissingInput
from vlm_core.models import config as menu
from vlm_core.models import pretrained, tokenizer
from vlm_core.models.open_clip_parts import create_model
from vlm_core.models.pixels import pixels_of
from vlm_core.models.rendered import Drawing
from vlm_core.models.towers import TwoTower
from vlm_core.run import recipes
from vlm_core.train import optim
from vlm_core.train.config import Optim

SIZE, WIDTH = 64, 12
VIT = menu.Vit(image_size=SIZE, patch_size=16, width=16, layers=2, heads=2)
IMAGES: dict[str, menu.ImageTower] = {
    "vit": VIT, "vit_map": VIT.model_copy(update={"pool": "map"}), "vit_flip": VIT.model_copy(update={"patch_dropout": 0.5}),
    "clip_resnet": menu.ClipResnet(image_size=SIZE, layers=[1, 1, 1, 1], width=8, heads=4),
    **{name: menu.TimmTrunk(name=name, image_size=SIZE) for name in ("resnet18", "resnet50d", "vgg16_bn", "efficientnet_b0", "swin_tiny_patch4_window7_224")},
}  # fmt: skip
TEXTS: dict[str, menu.TextTower] = {
    "clip_transformer": menu.ClipTransformer(context_length=12, width=16, layers=1, heads=2),
    "clip_transformer_bpe": menu.ClipTransformer(context_length=24, width=16, layers=1, heads=2, vocab_size=600, tokenizer="bpe"),
    "bert": menu.Bert(context_length=12, width=16, layers=1, heads=2, vocab_size=400),
    "bert_mean": menu.Bert(context_length=12, width=16, layers=1, heads=2, vocab_size=400, pool="mean"),
    "rendered": menu.Rendered(image_size=SIZE, font_size=8),
    "shared_text": menu.SharedText(context_length=24, vocab_size=600, tokenizer="bpe"),
}
CAPTIONS = ["a red circle on the left", "a blue square", "ein roter Kreis links", "赤い丸", "빨간 원", "a cross <end> on the right"] * 5


def learnt(config: menu.TextTower, folder: Path) -> tokenizer.Tokenizer:
    folder.mkdir(exist_ok=True)
    tokenizer.ready(config, folder, CAPTIONS)
    return tokenizer.build(config, folder)


def two_tower(image: str = "vit", text: str = "clip_transformer", seed: int = 0) -> TwoTower:
    torch.manual_seed(seed)
    return TwoTower(menu.TwoTower(image=IMAGES[image], text=TEXTS[text], width=WIDTH))


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def test_every_kind_that_learns_from_scratch_is_looked_at_here() -> None:
    looked_at = {tower.kind for tower in (*IMAGES.values(), *TEXTS.values())}
    assert (kinds(menu.ImageTower).keys() | kinds(menu.TextTower).keys()) - looked_at == {"efficientnet_lite0", "minilm"} | LATER


LATER: set[str] = {"vit_grouping"} & kinds(menu.ImageTower).keys()  # has tests of its own


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_tower_gives_what_its_settings_promise(name: str) -> None:
    tower, config = build(IMAGES[name], width=WIDTH, activation="gelu").eval(), IMAGES[name]
    with torch.no_grad():
        features_BF = tower.features(pixels())
        assert features_BF.shape == (3, tower.features_width)
        torch.testing.assert_close(tower.head(features_BF), tower(pixels()), rtol=1e-5, atol=1e-6)
        assert tower(pixels()).shape == (3, WIDTH)
        if "patches" in config.gives:
            tokens_BPE = tower.tokens(pixels())
            torch.testing.assert_close(tower.pool(tokens_BPE), features_BF, rtol=1e-5, atol=1e-5)
            assert tower.head(tokens_BPE[:, 1:]).shape[::2] == (3, WIDTH)
        if "image_mask" in config.gives:
            assert tower.tokens(pixels(), seen_BV=torch.tensor([[0, 3]]).expand(3, -1)).shape == (3, 3, tower.features_width)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_does_not_depend_on_what_it_is_batched_with(name: str, tmp_path: Path) -> None:
    towers, tokenize = two_tower(text=name).eval(), learnt(TEXTS[name], tmp_path)
    together = tokenizer.trim(tokenize(["a red circle", "a blue square on the left of it all"]))
    alone = tokenizer.trim(tokenize(["a red circle"]))
    with torch.no_grad():
        both_BD, alone_BD = towers.text(together), towers.text(alone)
    torch.testing.assert_close(both_BD[:1], alone_BD, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both_BD[0], both_BD[1], atol=1e-4)
    if "tokens" in TEXTS[name].gives:
        tokens_BLE = towers.text.embed(together)
        torch.testing.assert_close(towers.text.from_embeddings(tokens_BLE, together), both_BD, rtol=1e-5, atol=1e-6)
        assert towers.text.head(towers.text.states(tokens_BLE, together)).shape == (2, together.shape[1], WIDTH)


def test_bert_sees_later_words_and_the_causal_tower_does_not() -> None:
    for name, sees in (("bert", True), ("clip_transformer", False)):
        text = two_tower(text=name).eval().text
        ids_BL = torch.tensor([[1, 7, 8, 2], [1, 7, 9, 2]])
        with torch.no_grad():
            states_BLE = text.states(text.embed(ids_BL), ids_BL)
        assert torch.allclose(states_BLE[0, 1], states_BLE[1, 1], atol=1e-6) != sees


@pytest.mark.parametrize(("image", "text"), [(name, "clip_transformer") for name in IMAGES] + [("vit", name) for name in TEXTS])
def test_a_model_folder_gives_the_same_embeddings_and_bfloat16_nearly_so(image: str, text: str, tmp_path: Path) -> None:
    towers, see = two_tower(image, text).eval(), [Image.effect_noise((80, 70), 60).convert("RGB") for _ in range(2)]
    tokenize = learnt(TEXTS[text], tmp_path / "run")
    (tmp_path / "model").mkdir()
    pretrained.save(tmp_path / "model", towers, pixels_of(IMAGES[image]), {"recipe": "test", "parents": []}, words=tmp_path / "run")
    model = pretrained.load(tmp_path / "model")
    with torch.no_grad():
        expected_BD = F.normalize(towers.text(tokenize(CAPTIONS[:5])), dim=-1)
        torch.testing.assert_close(model.encode_texts(CAPTIONS[:5]), expected_BD, rtol=1e-5, atol=1e-6)
        exact_BD = model.encode_images(see)
        with torch.autocast("cpu", torch.bfloat16):
            rough_BD = model.encode_images(see)
    seen_B3SS = torch.stack([model.transform()(picture) for picture in see])
    with torch.no_grad():
        torch.testing.assert_close(exact_BD, F.normalize(towers.image(seen_B3SS), dim=-1), rtol=1e-5, atol=1e-6)
    assert rough_BD.dtype == torch.float32
    assert float((rough_BD * exact_BD).sum(-1).min()) > 0.99


# ---------------------------------------------------------------- one tower


@pytest.mark.parametrize("text", ["rendered", "shared_text"])
def test_what_both_sides_use_is_owned_once(text: str) -> None:
    towers, alone = two_tower(text=text), two_tower()
    own = {"rendered": 0, "shared_text": 600 * 16 + 24 * 16}[text]
    image = sum(value.numel() for value in alone.image.parameters())
    assert sum(value.numel() for value in towers.parameters()) == image + own + 1  # the logit scale
    assert {name.split(".")[0] for name in towers.state_dict()} == {"image", "log_scale"} | ({"text"} if own else set())
    assert len(towers.state_dict()) == len(list(towers.parameters()))
    grouped = [value for group in optim.groups(towers, Optim()) for value in group["params"]]
    assert len({id(value) for value in grouped}) == len(grouped) == len(list(towers.parameters()))


@pytest.mark.parametrize("text", ["rendered", "shared_text"])
def test_a_text_teaches_the_blocks_of_the_image_tower(text: str, tmp_path: Path) -> None:
    towers = two_tower(text=text)
    towers.text(learnt(TEXTS[text], tmp_path)(["a red circle"])).square().sum().backward()
    assert all(float(value.grad.abs().sum()) > 0 for value in towers.image.transformer.resblocks[0].parameters() if value.grad is not None)
    assert float(towers.image.proj.grad.abs().sum()) > 0
    assert (towers.image.conv1.weight.grad is not None) == (text == "rendered")  # words have an embedding of their own


def test_a_mixed_sequence_of_everything_is_neither_the_picture_nor_the_text(tmp_path: Path) -> None:
    towers, ids_BL = two_tower(text="shared_text").eval(), learnt(TEXTS["shared_text"], tmp_path)(["a red circle"] * 3)
    torch.manual_seed(0)
    patches = (towers.config.image.image_size // towers.config.image.patch_size) ** 2
    noise = torch.rand(3, patches), torch.rand(ids_BL.shape)
    with torch.no_grad():
        whole_BD = towers.text.mixed(pixels(), ids_BL, 1.0, *noise)
        torch.testing.assert_close(whole_BD, towers.image(pixels()), rtol=1e-4, atol=1e-5)  # all patches, no word: the picture
        half_BD = towers.text.mixed(pixels(), ids_BL, 0.5, *noise)
    assert not torch.allclose(half_BD, whole_BD, atol=1e-3)


def drawn(text: str, **changes: object) -> Image.Image:
    return Drawing(menu.Rendered.read({"image_size": 96, "font_size": 16, **changes})).draw(text)


def test_text_is_drawn_black_on_grey_in_lower_case_and_wrapped_at_words() -> None:
    page = drawn("Hello world of shapes")
    assert page.getpixel((95, 95)) == 127
    assert min(page.tobytes()) < 20
    assert max(page.tobytes()) == 127
    assert page.tobytes() == drawn("hello  WORLD of shapes").tobytes()
    lines = Drawing(menu.Rendered(image_size=96, font_size=16)).lines("hello world of shapes")
    assert lines == ["hello world of", "shapes"]
    long = Drawing(menu.Rendered(image_size=96, font_size=16)).lines("x" * 400)
    assert len(long) == 5  # what does not fit is cut
    assert set(map(len, long)) == {len(long[0])}


def test_letters_that_the_font_lacks_look_different_from_each_other() -> None:
    pages = [drawn(text).tobytes() for text in ("赤", "青", "빨", "🦊", "")]
    assert len(set(pages)) == 5
    square = drawn("赤").crop((1, 1, 11, 11)).resize((5, 5), Image.Resampling.NEAREST)  # squares of 2 pixels
    bits = sum((level == 0) << place for place, level in enumerate(square.tobytes()))
    assert bits == ord("赤")


def test_a_drawn_text_that_fills_its_page_is_not_cut_by_trimming() -> None:
    tokenize = Drawing(menu.Rendered(image_size=32, font_size=8))
    assert tokenizer.trim(tokenize(["m" * 400])).shape == (1, 32 * 32)
    assert tokenize([]).shape == (0, 1024)


def test_a_font_that_is_not_there_is_refused() -> None:
    with pytest.raises(MissingInput, match="Found no font at nowhere.ttf"):
        drawn("x", font="nowhere.ttf")


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(("kind", "size"), [("bpe", 400), ("wordpiece", 300)])
def test_a_tokenizer_learns_the_same_from_the_same_captions(kind: str, size: int) -> None:
    first = tokenizer.learn(kind, size, iter(CAPTIONS))
    assert all(tokenizer.learn(kind, size, iter(CAPTIONS)) == first for _ in range(3))


@pytest.mark.parametrize("name", ["clip_transformer_bpe", "bert"])
def test_a_learnt_tokenizer_keeps_its_promises(name: str, tmp_path: Path) -> None:
    config = TEXTS[name]
    tokenize, special = learnt(config, tmp_path), tokenizer.special_of(config)
    length = config.context_length  # type: ignore[union-attr]
    ids_BL = tokenize(["A  Red CIRCLE", "a red circle", "a red circle " * 30, "a <end> b", "赤い丸"])
    assert ids_BL.shape == (5, length)
    assert ids_BL[0].tolist() == ids_BL[1].tolist()
    assert set(ids_BL[:, 0].tolist()) == {special.ids[1]}
    assert ids_BL[2, -1] == special.end  # a text that is too long keeps its end
    assert [row.tolist().count(special.end) for row in ids_BL] == [1] * 5  # one that spells the end token has no further end
    assert int(ids_BL.max()) < special.vocabulary
    assert not (ids_BL[:, 1:-1] == special.mask).any()


def test_a_word_in_the_captions_becomes_one_token_and_every_byte_has_one(tmp_path: Path) -> None:
    tokenize = learnt(TEXTS["clip_transformer_bpe"], tmp_path)
    assert int((tokenize(["circle"]) != 0).sum()) == 3
    assert int((tokenize(["þ"]) != 0).sum()) == 2 + 1 + 2  # a space and two bytes, never seen
    lengths = [(tokenizer.BytePair(77)([text]) != 0).sum() - (tokenize([text]) != 0).sum() for text in ("赤い丸", "빨간 원")]
    assert min(map(int, lengths)) > 0  # shorter than CLIP's, which saw little Japanese and Korean


def test_the_feature_is_read_at_the_end_token_though_words_have_larger_ids(tmp_path: Path) -> None:
    towers, ids_BL = two_tower(text="clip_transformer_bpe").eval(), learnt(TEXTS["clip_transformer_bpe"], tmp_path)(["a red circle"])
    assert int(ids_BL.argmax()) != int((ids_BL == 2).int().argmax())
    changed_BL = ids_BL.clone()
    changed_BL[0, int((ids_BL == 2).int().argmax()) + 1 :] = 17
    with torch.no_grad():
        torch.testing.assert_close(towers.text(changed_BL), towers.text(ids_BL), rtol=1e-5, atol=1e-6)


def test_a_model_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    learnt(TEXTS["bert"], tmp_path / "run")
    (tmp_path / "model").mkdir()
    about = {"recipe": "test", "parents": []}
    with pytest.raises(CheckpointError, match=r"Found no tokenizer\.json in None"):
        pretrained.save(tmp_path / "model", two_tower(text="bert"), pixels_of(VIT), about)
    pretrained.save(tmp_path / "model", two_tower(text="bert"), pixels_of(VIT), about, words=tmp_path / "run")
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer.learn("wordpiece", 300, ["something else"]))
    with pytest.raises(CheckpointError, match=r"Found the tokenizer 'tokenizer.json .*' in .*, expected 'tokenizer.json "):
        pretrained.load(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"Found no tokenizer\.json in .*model, expected the tokenizer that the text tower was trained with"):
        pretrained.load(tmp_path / "model")


# ---------------------------------------------------------------- weights from files


def test_a_trunk_takes_timm_weights_from_a_file_and_may_be_locked(tmp_path: Path) -> None:
    torch.manual_seed(7)
    theirs = create_model("resnet18", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    config = menu.TimmTrunk(name="resnet18", image_size=SIZE, weights=str(tmp_path / "resnet18.safetensors"), lock=True)
    tower = build(config, width=WIDTH, activation="gelu").train()
    with torch.no_grad():
        expected_BC = theirs.forward_head(theirs.forward_features(pixels()), pre_logits=True)
    torch.testing.assert_close(tower.features(pixels()), expected_BC, rtol=1e-5, atol=1e-6)
    assert [name for name, value in tower.named_parameters() if value.requires_grad] == ["head.1.weight"]
    with pytest.raises(CheckpointError, match="shape|missing|many"):
        build(config.model_copy(update={"name": "resnet50"}), width=WIDTH, activation="gelu")
    with pytest.raises(Incompatible, match="Found lock=true without weights"):
        menu.TwoTower.read({"image": {"kind": "timm_trunk", "lock": True}})


def test_bert_takes_weights_and_tokenizer_of_a_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(5)
    sizes = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = BertModel(BertConfig(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "bert")
    fast = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    fast.save_pretrained(tmp_path / "bert")
    config = menu.Bert(context_length=12, width=16, layers=1, heads=2, vocab_size=400, weights=str(tmp_path / "bert"))
    tower, tokenize = build(config, width=WIDTH, activation="gelu").eval(), learnt(config, tmp_path / "run")
    given = fast(["a red circle"], return_tensors="pt")
    assert tokenize(["A red circle"])[0, :5].tolist() == given["input_ids"][0].tolist() == [101, 104, 105, 106, 102]
    with torch.no_grad():
        expected_BLE = theirs(**given).last_hidden_state
        ids_BL = tokenizer.trim(tokenize(["a red circle"]))
        torch.testing.assert_close(tower.states(tower.embed(ids_BL), ids_BL), expected_BLE, rtol=1e-5, atol=1e-6)
    (tmp_path / "bert" / "tokenizer.json").write_text(tokenizer.learn("wordpiece", 300, CAPTIONS))
    with pytest.raises(Incompatible, match=r"that puts \[1, 2\] around a text .* expected at most 400 ids and \[101, 102\]"):
        learnt(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"image": {"kind": "timm_trunk"}, "text": {"kind": "rendered"}}, "Found the text tower 'rendered', which is the image tower, with 'timm_trunk', expected vit"),
        ({"text": {"kind": "rendered", "image_size": 96}}, "Found texts drawn at model.text.image_size 96 and pictures at 224"),
        ({"image": {"kind": "vit", "pool": "map"}, "text": {"kind": "shared_text"}}, "Found the text tower 'shared_text' with model.image.pool 'map'"),
        ({"image": {"kind": "timm_trunk", "name": "resnet5"}}, "resnet5"),
        ({"image": {"kind": "timm_trunk", "image_size": 100}}, "image_size"),
    ],
)  # fmt: skip
def test_towers_that_do_not_fit_are_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        menu.TwoTower.read(values)


def test_the_weights_of_attention_pooling_are_in_the_model_folder_by_name() -> None:
    names = set(two_tower(image="vit_map").state_dict())
    assert {"image.map.latent", "image.map.mlp.fc1.weight"} <= names


def test_positions_and_latents_of_any_library_do_not_decay() -> None:
    towers = TwoTower(menu.TwoTower(image=IMAGES["swin_tiny_patch4_window7_224"], text=TEXTS["bert"], width=WIDTH))
    for model in (towers, two_tower(image="vit_map")):
        free = {id(value) for group in optim.groups(model, Optim()) if not group["weight_decay"] for value in group["params"]}
        named = ("relative_position_bias_table", "position_embeddings.weight", "token_type_embeddings.weight", "map.latent", "positional_embedding")
        undecayed = [id(value) for name, value in model.named_parameters() if name.endswith(named)]
        assert undecayed
        assert set(undecayed) <= free


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"kind": "vit"}, False), ({"kind": "clip_resnet"}, True), ({"kind": "efficientnet_lite0", "lock": True}, False), ({"kind": "efficientnet_lite0", "lock": False}, True)]
    + [({"kind": "timm_trunk", "name": name, "image_size": SIZE}, True) for name in ("resnet18", "coatnet_0_rw_224", "vgg16_bn", "efficientnet_b0")]
    + [({"kind": "timm_trunk", "name": "swin_tiny_patch4_window7_224", "image_size": SIZE}, False)],
)  # fmt: skip
def test_a_tower_says_whether_it_has_batch_norm_that_learns(values: dict[str, object], expected: bool) -> None:
    config = menu.TwoTower.read({"image": {"names": False, **values} if values["kind"] == "efficientnet_lite0" else values}).image
    assert config.batch_norm == expected
    if not config.locked:
        with torch.device("cpu" if config.kind == "efficientnet_lite0" else "meta"):
            tower = build(config, width=WIDTH, activation="gelu", fresh=False)
        assert any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in tower.modules()) == expected


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [("flip", 428), ("clippo", 93), ("one_tower", 124), ("kelip", 176), ("align", 889), ("unicl", 91), ("clip_rn50", 102)],
)  # fmt: skip
def test_the_sizes_of_papers_are_built_without_memory(recipe: str, millions: int) -> None:
    config = recipes("pretrain")[recipe]().model  # type: ignore[attr-defined]
    with torch.device("meta"):
        assert round(sum(value.numel() for value in TwoTower(config, fresh=False).parameters()) / 1e6) == millions
