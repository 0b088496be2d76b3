"""Region objectives by hand, under permutations, and on two ranks; and that a few seconds on coloured shapes teach them to ground better than chance."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import run_ranks
from tests.objectives.region_ranks import KINDS, gradients, of_rank
from tests.train.test_pretrain import Told, settings
from tests.train.tiny import SMALL, make_shards, small
from vlm_core.checkpoint import fill, read_weights
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.scene_config import Scenes
from vlm_core.errors import Incompatible
from vlm_core.evaluate.grounding import answers, by_chance, hits, judge, pooled_ap, questions
from vlm_core.evaluate.heldout import read_heldout
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.regions import Asked, Dense, anchors
from vlm_core.models.tokenizer import BytePair
from vlm_core.models.towers import TwoTower
from vlm_core.objectives.regions import Scenes as Given
from vlm_core.objectives.regions import region_losses, token_sigmoid_focal_loss
from vlm_core.run import recipes
from vlm_core.train.config import Pretrain
from vlm_core.train.inputs import Kit
from vlm_core.train.pretrain import train
from vlm_core.train.scenes import composed, fitting, scenes


def test_the_focal_loss_of_one_hit_one_miss_and_padding_by_hand() -> None:
    logits = torch.tensor([[[math.log(3.0), math.log(1 / 3), 5.0]]])  # chances 3/4, 1/4, padding
    found = token_sigmoid_focal_loss(logits, torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[1, 1, 0]]))
    assert float(found) == pytest.approx(0.25 * 0.25**2 * -math.log(0.75) + 0.75 * 0.25**2 * -math.log(0.75))


def given(boxes: list[list[float]], phrases: list[int], columns: list[int]) -> Given:
    column = torch.tensor([columns])
    return Given(torch.zeros(1, 3, 32, 32), torch.tensor([boxes]), torch.tensor([phrases]), Asked(column, column, torch.ones_like(column, dtype=torch.bool)))


def dense(distances_A4: Tensor, centre_A: Tensor) -> Dense:
    boxes_A4, levels = anchors([4, 2], 32, 2.0)
    return Dense(torch.zeros(1, len(boxes_A4), 1), distances_A4[None], centre_A[None], (boxes_A4[:, :2] + boxes_A4[:, 2:]) / 2, boxes_A4, levels)


def test_perfect_boxes_cost_nothing_and_every_term_is_divided_by_its_own_count() -> None:
    scene = given([[4.0, 4.0, 20.0, 20.0]], [3], [-1, 3, 5])
    boxes_A4, _ = anchors([4, 2], 32, 2.0)
    middle_A2 = (boxes_A4[:, :2] + boxes_A4[:, 2:]) / 2
    exact_A4 = torch.cat([middle_A2 - 4, 20 - middle_A2], -1)
    logits = torch.zeros(1, 20, 3)
    alignment, box, centre = region_losses(dense(exact_A4, torch.zeros(20)), logits, scene, top_k=4)
    assert float(box) == pytest.approx(0, abs=1e-6)
    wrong_A4 = exact_A4.clone()
    wrong_A4[:, :2] = wrong_A4[:, 2:] = 1.0  # boxes of 2 x 2 pixels
    assert float(region_losses(dense(wrong_A4, torch.zeros(20)), logits, scene, top_k=4)[1]) > 0.5
    assert float(centre) == pytest.approx(math.log(2))  # of a guess of one half, whatever is right
    matched = (float(alignment) - 0) / (0.75 * 0.25 * math.log(2))  # every cell costs (1 - alpha) / 4 x ln 2, hits alpha / 4 x ln 2
    count = round(60 / (matched + 2 / 3))  # 60 cells, one hit per matched place: 60 - 2/3 m = matched x m
    assert (60 - 2 / 3 * count) / count == pytest.approx(matched, rel=1e-5)


def test_the_order_of_phrases_in_a_prompt_and_of_objects_does_not_matter_to_the_loss() -> None:
    random = torch.Generator().manual_seed(0)
    ranges_A4, centre_A, logits = torch.rand(20, 4, generator=random) * 9, torch.randn(20, generator=random), torch.randn(1, 20, 4, generator=random)
    boxes = [[2.0, 2.0, 15.0, 14.0], [16.0, 12.0, 31.0, 30.0]]
    one = region_losses(dense(ranges_A4, centre_A), logits, given(boxes, [0, 1], [0, 0, 1, -1]), top_k=4)
    other = region_losses(dense(ranges_A4, centre_A), logits[..., [2, 3, 0, 1]], given(boxes[::-1], [1, 0], [1, -1, 0, 0]), top_k=4)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right)


def test_a_scene_without_matched_places_is_finite() -> None:
    scene = given([[1.0, 1.0, 2.0, 2.0]], [0], [0])  # between all centres
    assert all(bool(value.isfinite()) for value in region_losses(dense(torch.ones(20, 4), torch.zeros(20)), torch.zeros(1, 20, 1), scene, top_k=4))


# ---------------------------------------------------------------- ranks


@pytest.mark.flow
def test_two_ranks_that_match_differently_many_places_give_the_gradients_of_one_process() -> None:
    ranks = run_ranks(of_rank, 2)
    for kind in KINDS:
        expected = gradients(kind, None)
        assert float(expected["towers.regions.say_distance.weight"].abs().max()) > 1e-4
        for name, value in expected.items():
            for rank in ranks:
                torch.testing.assert_close(rank[kind][name], value, rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------- settings and scenes


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("objectives.region_word={}",), r"'region_word' with model.regions=null, expected a head that reads prompt; set model.regions=\{reads: prompt\}"),
        (("objectives.region_word={}", "model.regions={reads: concepts}"), r"'region_word' with model.regions=\{reads: concepts\}, expected a head that reads prompt"),
        (("model.regions={}",), "Found model.regions without an objective that teaches them"),
        (("objectives.region_word={}", "model.regions={}", "model.image.patch_dropout=0.5"), "'region_word' with model.image.patch_dropout 0.5, expected 0"),
        (
            ("objectives.region_word={}", "model.regions={}", "objectives.image_text_matching={}", "model.fusion={kind: joint_fusion, width: 32, heads: 2}"),
            "'region_word' with model.fusion 'joint_fusion', expected fusion inside the towers",
        ),
        (("objectives.region_concept={}", "model.regions={reads: concepts}", "model.image={kind: clip_resnet, image_size: 32}"), "which needs states of patches, with the image tower 'clip_resnet'"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        small(*changes)


def test_every_picture_leads_a_scene_and_objects_carry_the_phrase_of_their_picture() -> None:
    images = torch.full((4, 3, 24, 24), 255, dtype=torch.uint8)
    for row, colour in enumerate(((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0))):
        images[row, :, 6:18, 4:20] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    config = Scenes(objects_max=3, ground="white")
    one, other = (composed(images, [5, 6, 7, 8], config, torch.Generator().manual_seed(2)) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
    scenes_C3SS, boxes_CK4, phrase_CK = one
    assert sorted(phrase_CK[:, 0].tolist()) == [5, 6, 7, 8]
    for image_3SS, boxes_K4, phrase_K in zip(scenes_C3SS, boxes_CK4.int().tolist(), phrase_CK.tolist(), strict=True):
        for (x0, y0, x1, y1), phrase in zip(boxes_K4, phrase_K, strict=True):
            if phrase >= 0:
                colours_3N = image_3SS[:, y0:y1, x0:x1].flatten(1)
                assert bool((colours_3N == images[phrase - 5, :, 8, 8][:, None]).all(0).any())


EPOCHS = {"region_word": 24, "region_concept": 8}  # words of a prompt need longer than concepts that are vectors of the joint space already


def config_of(kind: str) -> Pretrain:
    recipe = {"region_word": "glip_tiny", "region_concept": "detclip_tiny"}[kind]
    config: Pretrain = recipes("pretrain")[recipe]()  # type: ignore[assignment]
    return config.but(
        *SMALL, "loader.cache_mb=0", "scenes.share=1", "scenes.smallest=0.4", "scenes.largest=0.7", "scenes.objects_max=2", "scenes.ground=white",
        "model.image.patch_size=4", "model.text.context_length=64", "fit.checkpoint_every=1000", f"fit.epochs={EPOCHS[kind]}",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_coloured_shapes_are_grounded_better_than_by_chance(kind: str, tmp_path: Path) -> None:
    shards, config = make_shards(tmp_path / "shapes", copies=16), config_of(kind)
    (tmp_path / "run").mkdir()
    train(settings(config, shards), tmp_path / "run", Told())
    model = TwoTower(config.model)
    fill(model, read_weights(tmp_path / "run" / "final.safetensors"), "")
    pretrained.save(tmp_path / "run", model, pixels_of(config.model.image), {})
    vlm = pretrained.load(tmp_path / "run")
    asked = questions(read_heldout(shards), 32, 60)
    found, dice = answers(vlm, asked), torch.Generator().manual_seed(0)
    named = [by_chance(guess, len(one.phrases), dice) for one, guess in zip(asked, found, strict=True)]
    learnt, chance = (
        pooled_ap([judge(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, guesses, strict=True)], 0.5) for guesses in (found, named)
    )
    assert learnt > 2 * chance
    assert learnt > 0.1
    assert np.concatenate([hits(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, found, strict=True)]).mean() > 0.3


def asked_of(*changes: str) -> tuple[dict[str, Tensor], list[list[int]]]:
    """(what the maker of scenes lays over a batch of four pictures, the phrases that each scene shows)."""
    config = small("scenes={negatives: 20, objects_max: 2, share: 1}", "model.text.context_length=64", *changes)
    images = torch.full((4, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 6:18, 4:20] = 40
    texts = ["a red ball", "a blue square", "A red ball", "tench"]
    made = scenes({"images": images, "texts": texts, "uids": ["x"], "step": 1}, Kit(config, Transform(32), BytePair(64)), torch.device("cpu"))
    return made, [[one for one in shown if one >= 0] for shown in made["scene_phrases"].tolist()]


def test_a_scene_is_asked_for_as_many_concepts_as_the_settings_say_from_the_dictionary_where_the_batch_has_too_few() -> None:
    made, shown = asked_of("objectives.region_concept={}", "model.regions={reads: concepts, width: 16, blocks: 1, levels: 2}")
    assert made["scene_column_BX"].shape == (4, 22)
    for column, own in zip(made["scene_column_BX"].tolist(), shown, strict=True):
        assert len(set(column)) == 22
        assert set(own) <= set(column)
        assert min(column) == 0
    assert made["scene_ids"].shape[0] == 22  # three captions of the batch, nineteen names


def test_a_prompt_holds_what_a_scene_shows_whole_and_as_many_others_as_have_room() -> None:
    assert fitting([4, 2, -1, 0, 1, 3], [1, 4], lengths=[3, 4, 5, 2, 4], room=13) == [4, 2, -1, -1, 1, -1]
    assert fitting([4, 2, 0, 1, 3], [1, 4], lengths=[3, 4, 5, 2, 4], room=13) == [4, 2, -1, 1, -1]
    assert fitting([2, 0, 3], [], lengths=[3, 4, 9, 2, 4], room=5) == [-1, 0, 3]
    made, shown = asked_of("objectives.region_word={}", "model.regions={reads: prompt, width: 16, blocks: 1, levels: 2}")
    whole = {0: 3, 1: 3, 2: 2}  # words of the three captions in CLIP's vocabulary: "tench" is two
    for column, own in zip(made["scene_column_BX"].tolist(), shown, strict=True):
        assert {one: column.count(one) for one in own} == {one: whole[one] for one in own}
        assert len(set(column)) - 1 > 3  # names of the dictionary, too
