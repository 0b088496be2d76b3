"""CLIP's loss beyond the official arrays: properties, hand-computed values, memory, precision."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.check import gradient
from vlm_core.errors import Incompatible
from vlm_core.models.towers import Outputs
from vlm_core.objectives import config as menu
from vlm_core.objectives.image_text_contrastive import ImageTextContrastive, clip_loss

# B pairs, D width


def pairs(count: int, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    image_BD, text_BD = (F.normalize(torch.randn(count, width, generator=random, dtype=dtype), dim=-1).requires_grad_() for _ in range(2))
    return image_BD, text_BD, torch.tensor(14.3, dtype=dtype, requires_grad=True)


def test_two_pairs_give_the_value_computed_by_hand() -> None:
    image_BD = torch.eye(2, dtype=torch.float64)
    text_BD = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    # logits with scale 2: rows (1.2, 0), (1.6, 2); columns (1.2, 1.6), (0, 2)
    rows = math.log1p(math.exp(0 - 1.2)) + math.log1p(math.exp(1.6 - 2))
    columns = math.log1p(math.exp(1.6 - 1.2)) + math.log1p(math.exp(0 - 2))
    assert float(clip_loss(image_BD, text_BD, torch.tensor(2.0))) == pytest.approx((rows + columns) / 4, rel=1e-12)


def test_perfectly_aligned_pairs_cost_nothing_and_random_ones_log_of_the_batch() -> None:
    image_BD = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert float(clip_loss(image_BD, image_BD, torch.tensor(100.0))) < 1e-3
    assert float(clip_loss(image_BD, image_BD, torch.tensor(0.0))) == pytest.approx(math.log(32))


def test_the_order_of_pairs_does_not_matter() -> None:
    image_BD, text_BD, scale = pairs(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(clip_loss(image_BD[order], text_BD[order], scale), clip_loss(image_BD, text_BD, scale), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 8, 9, 100])
def test_chunks_change_neither_the_value_nor_a_gradient(chunk: int) -> None:
    image_BD, text_BD, scale = pairs(9)
    whole, parts = clip_loss(image_BD, text_BD, scale), clip_loss(image_BD, text_BD, scale, chunk_size=chunk)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    for leaf in (image_BD, text_BD, scale):
        torch.testing.assert_close(gradient(parts, leaf), gradient(whole, leaf), rtol=1e-10, atol=1e-14)


def kept_for_backward(loss_of: object, *inputs: Tensor) -> int:
    """Bytes that autograd holds on to between forward and backward, inputs left out."""
    own, kept = {value.untyped_storage().data_ptr() for value in inputs}, dict[int, int]()

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss_of()  # type: ignore[operator]
    return sum(kept.values())


def test_a_chunked_loss_keeps_no_square_of_the_batch() -> None:
    image_BD, text_BD, scale = pairs(4096, 32, dtype=torch.float32)
    square = 4096 * 4096 * 4
    whole = kept_for_backward(lambda: clip_loss(image_BD, text_BD, scale), image_BD, text_BD, scale)
    parts = kept_for_backward(lambda: clip_loss(image_BD, text_BD, scale, chunk_size=256), image_BD, text_BD, scale)
    assert whole > square
    assert parts < square / 20


def test_the_loss_is_float32_inside_autocast() -> None:
    image_BD, text_BD, scale = pairs(64, 32, dtype=torch.float32)
    objective = ImageTextContrastive(menu.ImageTextContrastive())
    out = Outputs(image_BD, text_BD, scale, None)
    outside = objective(out, {})["image_text_contrastive"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = objective(out, {})["image_text_contrastive"]
        naive = clip_loss(image_BD, text_BD, scale).detach()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    assert abs(float(naive - outside.detach())) > 1e-5  # without the module's care autocast would have changed it


def test_the_combination_with_a_wrong_direction_is_refused_in_one_sentence() -> None:
    with pytest.raises(Incompatible, match=r"Found local_loss=true with gather_with_grad=false, expected another pair"):
        menu.ImageTextContrastive.read({"local_loss": True, "gather_with_grad": False})
    menu.ImageTextContrastive.read({"local_loss": False, "gather_with_grad": False})
