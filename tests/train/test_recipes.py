"""Every tiny recipe learns: a few steps on coloured shapes, through the loop and the loader; and parts that do not fit are refused in one sentence."""

from pathlib import Path

import pytest

from tests.train.test_pretrain import Told, settings
from tests.train.tiny import SMALL, make_shards, small
from vlm_core.errors import Incompatible
from vlm_core.run import recipes
from vlm_core.train.config import Pretrain
from vlm_core.train.fit import read_rows
from vlm_core.train.inputs import labels_of
from vlm_core.train.pretrain import train

RECIPES = recipes("pretrain")
TINY = [name for name in RECIPES if name.endswith("_tiny")]


# where the kind of tower is the point of a recipe, the smallest of that kind
OWN = {
    "vit_grouping": "model.image={kind: vit_grouping, image_size: 32, patch_size: 8, width: 32, layers: 2, last: 1, heads: 2, centres: 4}",
    "gated_fusion": "model.fusion={kind: gated_fusion, blocks: 1}",
    "clip_resnet": "model.image={kind: clip_resnet, image_size: 32, layers: [1, 1, 1, 1], width: 16, heads: 4}",
    "efficientnet_lite0": "model.image={kind: efficientnet_lite0, image_size: 32, names: false, head: linear, dropout: 0}",
    "bert": "model.text={kind: bert, context_length: 16, vocab_size: 400, width: 32, layers: 1, heads: 2}",
    "rendered": "model.text={kind: rendered, image_size: 32, font_size: 6}",
    "shared_text": "model.text={kind: shared_text, context_length: 12}",
    "joint_fusion": "model.fusion={kind: joint_fusion, width: 32, layers: 1, heads: 2}",
}


def config_of(recipe: str) -> Pretrain:
    """Its objectives on the smallest towers."""
    config: Pretrain = RECIPES[recipe]()  # type: ignore[assignment]
    own = [OWN[kind] for kind in (config.model.image.kind, config.model.text.kind, getattr(config.model.fusion, "kind", "")) if kind in OWN]
    own += ["model.roi_features={regions: 4, blocks: 1, image_size: 64}"] if config.model.roi_features else []
    return config.but(*SMALL, *own, "fit.epochs=3", "loader.cache_mb=0", "fit.checkpoint_every=1000")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


# neighbours must be looked up first, which the verb does: test_references.py trains ra_clip_tiny
@pytest.mark.parametrize("recipe", [name for name in TINY if RECIPES[name]().model.retrieval is None])  # type: ignore[attr-defined]
def test_every_tiny_recipe_trains(recipe: str, shards: Path, tmp_path: Path) -> None:
    config = config_of(recipe)
    train(settings(config, shards), tmp_path, Told())
    rows = read_rows(tmp_path)
    assert len(rows) == 3 * 4  # 3 epochs of 4 whole batches
    assert {name.split(".")[1] for name in rows[0] if name.startswith("term.")} == set(config.objectives.chosen())
    joining = {kind for kind, objective in config.objectives.chosen().items() if objective.joins} - {"weighted_captions"}  # whose weights grow
    losses = [sum(value for name, value in row.items() if name.startswith("term.") and name.split(".")[1] in joining) for row in rows]
    assert not joining or sum(losses[-3:]) < sum(losses[:3])


def test_a_run_with_queue_slow_copy_and_views_goes_on_to_the_same_numbers(shards: Path, tmp_path: Path) -> None:
    config = config_of("declip_tiny").but("objectives.moco={hidden: 32, width: 16, queue: 100}", "objectives.optimal_transport={}", "fit.checkpoint_every=5")
    (tmp_path / "one").mkdir()
    train(settings(config, shards), tmp_path / "one", Told())
    whole = read_rows(tmp_path / "one")
    (tmp_path / "one" / "final.safetensors").unlink()
    (tmp_path / "one" / "steps" / "step-00000010.ckpt").unlink()  # the older of the two that are kept
    train(settings(config, shards), tmp_path / "one", Told())
    again = read_rows(tmp_path / "one")
    assert [row["step"] for row in again] == [row["step"] for row in whole]
    for before, after in zip(whole[5:], again[5:], strict=True):
        for name in ("loss", "term.moco", "term.nearest_neighbour", "term.simsiam", "term.masked_language", "grad_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-6), (name, after["step"])


def test_every_recipe_of_a_paper_has_a_tiny_one_with_the_same_objectives() -> None:
    for name in TINY:
        if name not in ("clip_tiny", "siglip_tiny"):
            paper, tiny = (RECIPES[each]().objectives.chosen() for each in (name.removesuffix("_tiny"), name))
            # a queue of a model's own older embeddings is for towers that have learnt: from random weights they collapse
            assert {"image_text_contrastive" if kind == "queued_contrastive" else kind for kind in paper} == set(tiny), name


def test_equal_captions_have_one_label_whatever_their_case() -> None:
    one, other, same = labels_of(["A red ball", "a blue ball", "a red ball "]).tolist()
    assert one == same != other
    assert min(one, other) > 0  # 0 would mean no class


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("objectives.multi_text={}",), r"Found the objective 'multi_text' with loader.second_caption=\[\], expected the origins of second captions"),
        (("objectives.mixup={}",), "Found the objective 'mixup' beside image_text_contrastive, expected it alone"),
        (
            ("objectives.token_wise={}", "model.image={kind: clip_resnet, image_size: 32, layers: [1, 1, 1, 1], width: 8, heads: 4}"),
            "Found the objective 'token_wise', which needs patches and words, with the image tower 'clip_resnet'; choose model.image=",
        ),
        (
            ("objectives.captioning={}", "model.decoder={}", "model.text={kind: minilm, lock: false, sentence: false}"),
            "Found the objective 'captioning', which needs words that see only earlier ones and states of words, with the text tower 'minilm'; choose model.text=",
        ),
        (
            ("objectives.simsiam={}", "model.image={kind: efficientnet_lite0, names: false}"),
            "Found the objective 'simsiam' with a locked image tower, whose features are computed once",
        ),
        (("objectives.moco.queue=32",), "Found the objective 'moco' with room for 32 embeddings and loader.batch_size 64"),
        (
            ("objectives.image_text_contrastive=null", "objectives.simsiam={}"),
            r"Found only objectives that leave pictures and texts apart \(simsiam\), expected one that joins them; add one of: image_text_contrastive, sigmoid",
        ),
        (("objectives.masked_autoencoder.share=0.99",), "Found the objective 'masked_autoencoder' with share 0.99 of 16 patches"),
        (("objectives.masked_autoencoder.heads=5",), "Found the objective 'masked_autoencoder' with width 512 and heads 5"),
        (("objectives.image_text_matching={}",), "Found the objective 'image_text_matching' with model.fusion=null, expected a model that has one; set model.fusion="),
        (("objectives.captioning={}",), "Found the objective 'captioning' with model.decoder=null, expected a model that has one; set model.decoder={}"),
        (("model.decoder={heads: 2}",), "Found model.decoder without an objective that teaches it to write; set objectives.captioning={} or model.decoder=null"),
        (
            ("model.fusion={kind: joint_fusion}", "objectives.image_text_matching={}", "fit.micro_batch=1", "fit.gradients=accumulated"),
            "Found the objective 'image_text_matching' with 1 pair at a time on each of 1 devices, expected others to draw negatives from; raise loader.batch_size",
        ),
        (
            ("model.fusion={kind: joint_fusion}", "objectives.fused_masked_language={}"),
            "Found model.fusion without objectives.image_text_matching, expected it",
        ),
        (
            ("model.fusion={kind: gated_fusion, blocks: 2}", "objectives.image_text_matching={}"),
            "Found model.fusion.blocks 2 in towers of 1 blocks, expected at most so many; lower it",
        ),
        (
            ("model.fusion={kind: gated_fusion}", "model.text={kind: bert}", "objectives.image_text_matching={}"),
            "Found model.fusion gated_fusion in the towers 'vit' and 'bert', expected vit and clip_transformer",
        ),
        (("objectives.cross_level={}", "loader.second_caption=[rewritten]"), "Found the objective 'cross_level' with model.roi_features=null, expected a model that has one; set model.roi_features={}"),
        (("model.roi_features={blocks: 1}",), "Found model.roi_features without an objective that reads them; set objectives.cross_level={}"),
        (("model.roi_features={blocks: 9}", "objectives.cross_level={}", "loader.second_caption=[rewritten]"), "Found model.roi_features.blocks 9 in a tower of 1 blocks"),
        (("model.roi_features={}", "model.image={kind: clip_resnet, image_size: 64, layers: [1, 1, 1, 1], width: 16, heads: 4}"), "Found model.roi_features in the image tower 'clip_resnet', expected vit"),
        (("objectives.queued_contrastive.queue=32",), "Found the objective 'queued_contrastive' with room for 32 embeddings and loader.batch_size 64"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_before_any_data_is_read(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        small(*changes)


SYSTEMS = """clip, align, declip, otter, zerovl, filip, pyramidclip, laclip, alip, ra_clip, unicl, slip, flava, kelip, segclip, fiber, glip, detclip, coca, nlip, pali_style, lit,
basic, siglip, clippo, one_tower, moco_clip, mae_clip""".replace("\n", " ").split(", ")


def test_every_system_has_a_recipe_of_its_name_in_the_papers_size_and_a_tiny_one() -> None:
    assert [name for system in SYSTEMS for name in (system.strip(), f"{system.strip()}_tiny") if name not in RECIPES] == []


# from the specification of the methods: (recipe, setting, value)
DEFAULTS = [
    ("clip", "optim.lr", 4e-4), ("clip", "loader.batch_size", 32_768), ("alip", "optim.warmup_share", 0.1), ("alip", "optim.weight_decay", 0.2),
    ("slip", "optim.lr", 3e-3), ("slip", "optim.warmup_share", 1 / 25), ("slip", "fit.epochs", 25), ("laclip", "optim.warmup_share", 1 / 35),
    ("laclip", "optim.weight_decay", 0.5), ("zerovl", "optim.warmup_share", 0.025), ("zerovl", "optim.floor", 0.1), ("zerovl", "optim.lr", 1e-4),
    ("fiber", "optim.warmup_share", 0.1), ("fiber", "optim.schedule", "linear"), ("glip", "optim.ema", 0.999), ("glip", "optim.rates.text", 0.1),
    ("glip", "optim.milestones", "[0.67, 0.89]"), ("detclip", "optim.rates.text", 0.1), ("declip", "model.scale.max", 403.43), ("declip", "model.scale.min", 20.09),
    ("unicl", "model.scale.init", 2.718), ("coca", "optim.warmup_share", 0.02), ("coca", "optim.schedule", "linear"), ("coca", "objectives.captioning.weight", 2),
    ("siglip", "optim.lr", 1e-3), ("siglip", "optim.weight_decay", 1e-4), ("siglip", "optim.warmup_share", 0.05), ("siglip", "model.scale.bias", -10),
    ("clip_small", "loader.batch_size", 1024), ("clip_small", "optim.warmup_share", 0.1), ("defilip_yfcc", "optim.lr", 1e-3), ("defilip_yfcc", "optim.warmup_steps", 2500),
    ("datacomp_small", "fit.samples", 12_800_000), ("datacomp_medium", "fit.samples", 128_000_000), ("datacomp_medium", "optim.warmup_steps", 500),
    ("datacomp_small", "optim.lr", 5e-4), ("datacomp_small", "optim.weight_decay", 0.2), ("segclip", "optim.warmup_share", 0.15), ("lit", "optim.warmup_share", 0.03),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "setting", "value"), DEFAULTS)
def test_defaults_are_those_of_the_papers(recipe: str, setting: str, value: object) -> None:
    assert RECIPES[recipe]().flat()[setting] == (pytest.approx(value, rel=0.02) if isinstance(value, float) else value)


def test_zerovl_takes_sixteen_parts_of_1024_pairs() -> None:
    config: Pretrain = RECIPES["zerovl"]()  # type: ignore[assignment]
    assert config.fit.micro_batch is not None
    assert (config.fit.micro_batch * config.fit.devices, config.loader.batch_size // (config.fit.micro_batch * config.fit.devices)) == (1024, 16)
