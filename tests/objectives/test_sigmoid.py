"""SigLIP's loss beyond the official arrays."""

import math

import pytest
import torch

from tests.golden.check import gradient
from tests.objectives.test_image_text_contrastive import kept_for_backward, pairs
from vlm_core.objectives.sigmoid import siglip_loss


def test_two_pairs_give_the_value_computed_by_hand() -> None:
    image_BD = torch.eye(2, dtype=torch.float64)
    text_BD = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    # scale 2, bias -1: matching 0.2 and 1.0, others -1.0 and 0.6
    expected = sum(math.log1p(math.exp(x)) for x in (-0.2, -1.0, -1.0, 0.6)) / 2
    assert float(siglip_loss(image_BD, text_BD, torch.tensor(2.0), torch.tensor(-1.0))) == pytest.approx(expected, rel=1e-12)


def test_blocks_of_two_ranks_add_up_to_the_whole_batch() -> None:
    image_BD, text_BD, scale = pairs(8)
    bias = torch.tensor(-10.0, dtype=torch.float64)
    own = [siglip_loss(image_BD[part], text_BD[part], scale, bias) for part in (slice(0, 4), slice(4, 8))]
    other = [siglip_loss(image_BD[a], text_BD[b], scale, bias, negative_only=True) for a, b in ((slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4)))]
    torch.testing.assert_close((own[0] + other[0] + own[1] + other[1]) / 2, siglip_loss(image_BD, text_BD, scale, bias), rtol=1e-12, atol=0)


def test_rows_of_a_later_rank_find_their_texts_by_the_offset() -> None:
    image_BD, text_BD, scale = pairs(8)
    bias = torch.tensor(-10.0, dtype=torch.float64)
    parts = [siglip_loss(image_BD[begin : begin + 4], text_BD, scale, bias, offset=begin, chunk_size=3) for begin in (0, 4)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, siglip_loss(image_BD, text_BD, scale, bias), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 8, 9, 100])
def test_chunks_change_neither_the_value_nor_a_gradient(chunk: int) -> None:
    image_BD, text_BD, scale = pairs(9)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    whole, parts = (siglip_loss(image_BD, text_BD, scale, bias, chunk_size=size) for size in (0, chunk))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    for leaf in (image_BD, text_BD, scale, bias):
        torch.testing.assert_close(gradient(parts, leaf), gradient(whole, leaf), rtol=1e-10, atol=1e-14)


def test_a_chunked_loss_keeps_no_square_of_the_batch() -> None:
    image_BD, text_BD, scale = pairs(4096, 32, dtype=torch.float32)
    bias = torch.tensor(-10.0, requires_grad=True)
    square = 4096 * 4096 * 4
    assert kept_for_backward(lambda: siglip_loss(image_BD, text_BD, scale, bias), image_BD, text_BD, scale, bias) > square
    assert kept_for_backward(lambda: siglip_loss(image_BD, text_BD, scale, bias, chunk_size=256), image_BD, text_BD, scale, bias) < square / 20


def test_a_large_logit_neither_overflows_nor_loses_its_gradient() -> None:
    image_BD = torch.eye(4, dtype=torch.float64).requires_grad_()
    loss = siglip_loss(image_BD, -torch.eye(4, dtype=torch.float64), torch.tensor(1000.0), torch.tensor(0.0))
    assert float(loss.detach()) == pytest.approx(1000 + 3 * math.log(2), rel=1e-12)
    assert float(gradient(loss, image_BD)[0, 0]) == pytest.approx(1000 / 4, rel=1e-9)
