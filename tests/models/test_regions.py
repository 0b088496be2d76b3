"""The dense head and what it is asked: places and boxes, ATSS by hand, prompts and their words, concepts that know nothing of each other."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlm_core.data.shards.augment import Transform
from vlm_core.models import config as menu
from vlm_core.models import pretrained, tokenizer
from vlm_core.models.concepts import ConceptDictionary, build_parallel_concepts, packaged_concepts
from vlm_core.models.region_targets import assign, boxes_at, centerness, distances
from vlm_core.models.region_text import grounding_prompt, phrase_scores, positive_map, region_concept_logits, words_of
from vlm_core.models.regions import Asked, anchors, ask, detect, ground
from vlm_core.models.towers import TwoTower

WORLD = menu.TwoTower(
    image=menu.Vit(image_size=32, patch_size=8, width=32, layers=1, heads=2), text=menu.ClipTransformer(context_length=32, width=32, layers=1, heads=2), width=16,
    regions=menu.Regions(width=16, blocks=1, levels=3, anchor_scale=4),
)  # fmt: skip
PHRASES = ["a red ball", "tench", "blue square"]


def model(*changes: str) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(WORLD.but(*changes)).eval()


def read(towers: TwoTower, phrases: list[str], asked: list[list[int]]) -> Asked:
    assert towers.config.regions is not None
    return ask(towers.config.regions, phrases, torch.tensor(asked), lambda texts: tokenizer.trim(tokenizer.build(towers.config.text)(texts)), 32)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- places


def test_places_of_a_level_lie_in_the_middle_of_their_cells() -> None:
    boxes_A4, levels = anchors([4, 2], 32, 2.0)
    assert levels == (16, 4)
    assert boxes_A4[0].tolist() == [-4, -4, 12, 12]  # stride 8, side 16, around (4, 4)
    assert boxes_A4[1].tolist() == [4, -4, 20, 12]  # x runs first
    assert boxes_A4[16].tolist() == [-8, -8, 24, 24]


def test_distances_and_boxes_are_inverse_and_centerness_is_one_in_the_middle() -> None:
    centres, boxes = torch.tensor([[10.0, 10.0], [6.0, 8.0]]), torch.tensor([[[0.0, 0, 20, 20], [4.0, 4, 12, 24]]])
    ltrb = distances(centres, boxes)
    assert ltrb.tolist() == [[[10, 10, 10, 10], [2, 4, 6, 16]]]
    assert torch.equal(boxes_at(centres, ltrb), boxes)
    assert centerness(ltrb)[0].tolist() == pytest.approx([1.0, math.sqrt(2 / 6 * 4 / 16)])


def test_matching_follows_the_algorithm_step_by_step() -> None:
    boxes_A4, levels = anchors([8, 4, 2], 32, 4.0)
    objects = torch.tensor([[[3.0, 5.0, 19.0, 21.0], [20.0, 2.0, 31.0, 12.0], [0.0, 0.0, 0.0, 0.0]]])
    found = assign(boxes_A4, levels, objects, torch.tensor([[True, True, False]]), top_k=4)
    wanted: dict[int, tuple[float, int]] = {}
    for number, (x0, y0, x1, y1) in enumerate(objects[0, :2].tolist()):
        begin, near = 0, []
        for count in levels:
            rows = range(begin, begin + count)
            far = {row: math.dist(((boxes_A4[row][:2] + boxes_A4[row][2:]) / 2).tolist(), ((x0 + x1) / 2, (y0 + y1) / 2)) for row in rows}
            near += sorted(rows, key=lambda row, far=far: far[row])[:4]  # type: ignore[misc]
            begin += count
        overlap = {}
        for row in near:
            a0, b0, a1, b1 = boxes_A4[row].tolist()
            shared = max(min(a1, x1) - max(a0, x0), 0) * max(min(b1, y1) - max(b0, y0), 0)
            overlap[row] = shared / ((a1 - a0) * (b1 - b0) + (x1 - x0) * (y1 - y0) - shared)
        values = list(overlap.values())
        mean = sum(values) / len(values)
        least = mean + math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        for row, value in overlap.items():
            x, y = ((boxes_A4[row][:2] + boxes_A4[row][2:]) / 2).tolist()
            if value >= least and x0 < x < x1 and y0 < y < y1 and value > wanted.get(row, (0.0, 0))[0]:
                wanted[row] = value, number
    assert wanted
    assert {row: int(found[0, row]) for row in range(sum(levels)) if found[0, row] >= 0} == {row: number for row, (_, number) in wanted.items()}


def test_padding_is_never_matched() -> None:
    boxes_A4, levels = anchors([8, 4], 32, 4.0)
    objects = torch.tensor([[[4.0, 4.0, 20.0, 20.0], [8.0, 8.0, 28.0, 28.0]]])
    with_padding = assign(boxes_A4, levels, objects, torch.tensor([[True, False]]))
    assert torch.equal(with_padding, assign(boxes_A4, levels, objects[:, :1], torch.tensor([[True]])))


# ---------------------------------------------------------------- what is asked


def test_a_prompt_joins_phrases_and_knows_which_word_is_whose() -> None:
    ids, owner = grounding_prompt([[11, 12], [13]], separator=[9], ends=(1, 2), max_tokens=20)
    assert ids == [1, 11, 12, 9, 13, 9, 2]
    assert owner == [-1, 0, 0, -1, 1, -1, -1]
    ids, owner = grounding_prompt([[11, 12, 14, 15], [13, 16, 17, 18], [19]], separator=[9], ends=(1, 2), max_tokens=11)
    assert ids == [1, 11, 12, 9, 13, 16, 9, 19, 9, 2]  # each has 3 places at most, its separator included
    assert len(owner) == len(ids) <= 11


def test_words_are_what_stands_between_the_special_tokens() -> None:
    assert words_of([7, 1, 2, 8, 0, 0]) == [1, 2]


def test_positives_are_the_words_of_the_objects_own_phrase() -> None:
    found = positive_map(torch.tensor([[4, -1]]), torch.tensor([[-1, 4, 4, 2]]))
    assert found.tolist() == [[[False, True, True, False], [False] * 4]]


def test_the_score_of_a_phrase_is_the_mean_of_its_words() -> None:
    chance = torch.tensor([[[0.9, 0.2, 0.4, 0.6]]])
    assert phrase_scores(chance, torch.tensor([[-1, 0, 0, 2]]), 3)[0, 0].tolist() == pytest.approx([0.3, 0.0, 0.6])


def test_logits_of_concepts_are_scaled_cosines_with_a_bias() -> None:
    regions, concepts = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0, 0.0], [0.0, -5.0]]])
    found = region_concept_logits(regions, concepts, torch.tensor([math.log(10.0)]), torch.tensor([-1.0]))
    assert found[0, 0].tolist() == pytest.approx([10 * 0.6 - 1, -10 * 0.8 - 1])


def test_the_order_of_concepts_changes_nothing_but_the_order_of_scores() -> None:
    towers = model("regions.reads=concepts")
    one, other = (ground(towers, pictures(2), read(towers, PHRASES, [order] * 2))[1] for order in ([0, 1, 2], [2, 0, 1]))
    torch.testing.assert_close(other, one[..., [2, 0, 1]])
    fewer = ground(towers, pictures(2), read(towers, PHRASES, [[1, -1]] * 2))[1]
    torch.testing.assert_close(fewer[..., :1], one[..., 1:2])  # and others do not matter at all


def test_words_behind_the_prompt_of_a_picture_do_not_matter() -> None:
    towers = model()
    both = read(towers, PHRASES, [[0, 1, 2], [1, -1, -1]])
    alone = read(towers, PHRASES, [[1, -1, -1]])
    length = alone.ids.shape[1]
    assert not both.real_BX[1, length:].any()
    torch.testing.assert_close(ground(towers, pictures(2), both)[1][1:, :, :length], ground(towers, pictures(2)[1:], alone)[1])


def test_a_gated_fusion_lets_the_prompt_change_the_boxes_once_its_gates_open() -> None:
    towers = model("fusion={kind: gated_fusion, blocks: 1}")
    asked = [read(towers, PHRASES, [[phrase]]) for phrase in (0, 2)]
    closed = [ground(towers, pictures(1), one)[0].region_BAQ.detach() for one in asked]
    torch.testing.assert_close(closed[0], closed[1])
    torch.nn.init.ones_(towers.fusion.image_looks[0].alpha)  # type: ignore[union-attr,index]
    opened = [ground(towers, pictures(1), one)[0].region_BAQ.detach() for one in asked]
    assert float((opened[0] - opened[1]).abs().max()) > 1e-3


def test_boxes_lie_in_the_picture_and_scores_fall() -> None:
    towers = model("regions.reads=concepts")
    found = detect(towers, pictures(2), read(towers, PHRASES, [[0, 2, -1]] * 2), 3, most=7)
    for one in found:
        assert len(one.score_D) == 7
        assert bool((one.score_D[:-1] >= one.score_D[1:]).all())
        assert float(one.boxes_D4.min()) >= 0
        assert float(one.boxes_D4.max()) <= 32
        assert set(one.phrase_D.tolist()) <= {0, 2}  # nobody asked for 1


@pytest.mark.parametrize("changes", [(), ("regions.reads=concepts", "regions.definitions=true")])
def test_a_model_folder_keeps_the_regions(changes: tuple[str, ...], tmp_path: Path) -> None:
    towers = model(*changes)
    pretrained.save(tmp_path, towers, Transform(32), {})
    again = pretrained.load(tmp_path).towers
    assert again.config == towers.config
    for one, other in zip(
        ground(towers, pictures(1), read(towers, PHRASES, [[0, 1]])), ground(again, pictures(1), read(again, PHRASES, [[0, 1]])), strict=True
    ):
        for left, right in zip(one if isinstance(one, tuple) else (one,), other if isinstance(other, tuple) else (other,), strict=True):
            assert left == right if isinstance(left, tuple) else torch.equal(left, right)


# ---------------------------------------------------------------- concepts


def test_the_dictionary_finds_names_and_what_is_most_like_them() -> None:
    known = ConceptDictionary({"Tench": "a fish", "great white shark": "a large fish", "white wolf": "an animal"})
    assert known.lookup("tench ") == "a fish"
    assert known.lookup("shark") is None
    assert known.nearest("a great white shark") == "great white shark"  # 3 of 4 words
    assert known.nearest("shark") is None  # 1 of 3
    assert known.enrich("TENCH") == "TENCH, a fish"
    assert known.enrich("white shark") == "white shark, a large fish"  # 2 of 3
    assert known.enrich("teapot") == "teapot"


def test_negatives_are_different_and_never_what_is_excluded() -> None:
    known = ConceptDictionary({str(number): "" for number in range(10)})
    found = known.sample_negatives(["3", "7"], 20, torch.Generator().manual_seed(0))
    assert sorted(found) == [str(number) for number in range(10) if number not in (3, 7)]
    assert found[:4] == known.sample_negatives(["3", "7"], 4, torch.Generator().manual_seed(0))


def test_concepts_of_a_picture_are_filled_up_with_others() -> None:
    found = build_parallel_concepts([4, 4, 1], range(6), 5, torch.Generator().manual_seed(0))
    assert len(found) == len(set(found)) == 5
    assert {1, 4} <= set(found)
    assert sorted(build_parallel_concepts([0], range(2), 4, torch.Generator().manual_seed(0))) == [-1, -1, 0, 1]


def test_the_packaged_dictionary_describes_a_tench() -> None:
    assert len(packaged_concepts()) > 1000
    assert "fish" in str(packaged_concepts().lookup("tench"))
