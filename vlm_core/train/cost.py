"""What one step costs, without weights, data or time: the recipe's own modules run on fake tensors, which have shapes and no contents.

FLOPs come from torch's counter (a multiplication and an addition are two), activations from what autograd would keep for the backward pass.
"""

# B pairs, L tokens, S side of the picture

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from vlm_core.models import config as menu
from vlm_core.models import tokenizer
from vlm_core.models.pixels import pixels_of
from vlm_core.models.roi_features import WIDTH
from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import base
from vlm_core.objectives.config import Pairwise
from vlm_core.train import inputs, locked
from vlm_core.train.blocks import blocks_of, checkpoint_blocks
from vlm_core.train.config import Pretrain
from vlm_core.train.detections import Detections

FLOAT, ADAM = 4, 8  # bytes of a number; of Adam's two means of it
TRUE = 0.15  # share of a mask that holds, such as of hidden words
FEW, MORE = 4, 8  # pairs of the two passes whose difference is the cost of a pair


class Cost(NamedTuple):
    """Of a step in one process. Bytes of losses over all pairs are apart, because they grow with the square of the batch."""

    parameters: dict[str, int]  # part -> numbers in it
    learning: int  # of them trained
    state: int  # numbers in queues, slow copies and other buffers
    flops: float  # of a pair, forward and backward
    forward: dict[str, float]  # part -> FLOPs of a pair, forward
    activations: float  # bytes that a pair keeps for the backward pass
    of_towers: float  # of them in the towers, without what objectives do with features
    once: float  # FLOPs of a pair, the towers' forward for everything that objectives need
    guessed: tuple[str, ...]  # objectives whose own FLOPs were taken from their parameters, because their step depends on values


def cost_of(config: Pretrain) -> Cost:
    """Raises nothing for a recipe that training accepts: what fake tensors cannot follow is guessed, and named."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), _Answers(), _grad():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copy.deepcopy of a module does, and does not need it
        towers = _towers(config)
        objectives, _ = base.build(config.objectives, towers)
        own = {
            "image tower": towers.image,
            "text tower": towers.text,
            **_further(towers),
            **{f"objective {kind}": module for kind, module in objectives.items()},
        }
        sizes = {name: sum(value.numel() for value in module.parameters()) for name, module in own.items()}
        everything = [towers, *objectives.values()]
        learning = sum(value.numel() for module in everything for value in module.parameters() if value.requires_grad)
        state = sum(value.numel() for module in everything for value in module.buffers())
        slow = sum(value.numel() for module in everything for value in module.parameters() if not value.requires_grad)
        if config.fit.checkpoint_blocks:
            checkpoint_blocks(towers)
        few, more = (_pass(config, towers, objectives, count) for count in (FEW, MORE))
        forward = {"image": _forward(config, towers, "image"), "text": _forward(config, towers, "text")}
    per_pair = (more.flops - few.flops) / (MORE - FEW) + _guess(few.guessed, objectives, config)
    kept, of_towers = max(more.bytes - few.bytes, 0) / (MORE - FEW), max(more.of_towers - few.of_towers, 0) / (MORE - FEW)
    once = (more.once - few.once) / (MORE - FEW)
    return Cost(_rest(sizes, towers, objectives), learning, state + slow, per_pair, forward, kept, of_towers, once, few.guessed)


class _Answers(TorchDispatchMode):
    """What a step asks of values that a fake tensor has not: a number is 1 (a condition: false), a condition on many holds for a share of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten.nonzero.default:
            return torch.ones(_true(args[0]), args[0].ndim, dtype=torch.long)
        if func is torch.ops.aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1]):
            return func(args[0], [place for index in args[1] for place in _places(index)])
        return func(*args, **(kwargs or {}))


def _true(mask: Tensor) -> int:
    return max(int(TRUE * mask.numel()), 1)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the rows, columns, ... where it holds."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.ones(_true(index), dtype=torch.long, device=index.device) for _ in range(index.ndim)]


@contextmanager
def _grad() -> Iterator[None]:
    """Gradients on, random numbers given back, and distributions that do not ask whether their parameters are valid."""
    asks = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(asks)


def _towers(config: Pretrain) -> TwoTower:
    try:
        return TwoTower(config.model, fresh=False).train()
    except RuntimeError:  # packaged trunks change their memory format, which fake weights cannot: these are small, and built for real
        with _disable_current_modes():
            return TwoTower(config.model, fresh=False).train()


def _further(towers: TwoTower) -> dict[str, nn.Module]:
    return {name: module for name, module in towers.named_children() if name not in ("image", "text")}


def _rest(sizes: dict[str, int], towers: TwoTower, objectives: dict[str, base.Objective]) -> dict[str, int]:
    """With the logit scale and bias, which belong to no part."""
    known = {id(value) for module in (towers.image, towers.text, *_further(towers).values()) for value in module.parameters()}
    return {**{name: size for name, size in sizes.items() if size}, "scale": sum(value.numel() for value in towers.parameters() if id(value) not in known)}


# ---------------------------------------------------------------- one pass


class _Seen(NamedTuple):
    flops: float
    bytes: float
    of_towers: float  # bytes, when the towers are done
    once: float  # FLOPs, when the towers are done
    guessed: tuple[str, ...]


class _Kept:
    """Bytes that autograd keeps, each storage once, without the weights."""

    def __init__(self, weights: set[int]) -> None:
        self.seen, self.bytes, self._alive = set(weights), 0, list[Tensor]()

    def pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self._alive.append(value)  # or its address could come again
            self.bytes += storage.nbytes()
        return value


def _pass(config: Pretrain, towers: TwoTower, objectives: dict[str, base.Objective], count: int) -> _Seen:
    """Forward and backward of a batch. Attention is counted as the products that it is, but kept as the fused kernels keep it."""
    step, halfway = functools.partial(_step, config, towers, objectives, count), dict[str, float]()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        total, guessed = step(lambda: halfway.update(flops=counter.get_total_flops()))
        total.backward()
    weights = {value.untyped_storage()._cdata for module in (towers, *objectives.values()) for value in (*module.parameters(), *module.buffers())}
    kept = _Kept(weights)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value), _precision(config), _inputs_of_blocks(config, towers, kept):
        step(lambda: halfway.update(bytes=kept.bytes))
    return _Seen(float(counter.get_total_flops()), kept.bytes, halfway["bytes"], halfway["flops"], guessed)


@contextmanager
def _inputs_of_blocks(config: Pretrain, towers: TwoTower, kept: _Kept) -> Iterator[None]:
    """Checkpointed blocks keep what goes into them, out of autograd's sight."""
    blocks = list(blocks_of(towers)) if config.fit.checkpoint_blocks else []
    hooks = [block.register_forward_pre_hook(lambda _, given: (kept.pack(given[0]), None)[1]) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _precision(config: Pretrain) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if config.fit.precision == "bf16" else nullcontext()


def _step(
    config: Pretrain, towers: TwoTower, objectives: dict[str, base.Objective], count: int, encoded: Callable[[], None]
) -> tuple[Tensor, tuple[str, ...]]:  # fmt: skip
    """(loss, objectives whose FLOPs must be guessed); `encoded` is called when the towers are done."""
    batch, asked, guessed = _batch(config, towers, count), dict[str, Any](), list[str]()
    for kind, objective in objectives.items():
        try:
            asked |= objective.ask(batch)
        except Exception:
            guessed.append(kind)
    batch |= asked
    out: Outputs = towers(batch, config.objectives.needs)
    encoded()
    total = sum((value.float().sum() for value in (out.image_BD, out.text_BD)), torch.zeros(()))
    for kind, objective in objectives.items():
        try:
            total = total + sum(objective(out, batch).values())
        except Exception:  # it asks for values, for batch entries of its own, or for what another guessed one would have given
            guessed.append(kind)
    return total, tuple(dict.fromkeys(guessed))


def _guess(guessed: tuple[str, ...], objectives: dict[str, base.Objective], config: Pretrain) -> float:
    """Six FLOPs per learning parameter and token: forward, and twice that backward."""
    length = max(getattr(config.model.text, "context_length", 1), _patches(config))  # a drawn text has as many patches as a picture
    return float(sum(6 * length * value.numel() for kind in guessed for value in objectives[kind].parameters() if value.requires_grad))


def _patches(config: Pretrain) -> int:
    image: Any = config.model.image
    return (image.image_size // image.patch_size) ** 2 if hasattr(image, "patch_size") else 49


def _text_numbers(config: Pretrain) -> int:
    """How many numbers a text tower is given of a text: ids of tokens, or the pixels of a drawn one."""
    text = config.model.text
    return text.image_size**2 if isinstance(text, menu.Rendered) else int(getattr(text, "context_length", 1))


def _batch(config: Pretrain, towers: TwoTower, count: int) -> dict[str, Any]:
    """What training would give the towers. A locked trunk's features were computed once, so they are an input."""
    side, length = config.model.image.image_size, _text_numbers(config)
    made: dict[str, Any] = {"texts": ["a"] * count, "uids": [str(i) for i in range(count)], "step": 0, "rows": torch.arange(count)}
    if locked.is_locked(towers.image):
        made["image_features"] = torch.rand(count, towers.image_width)
    else:
        made["images"] = torch.rand(count, 3, side, side)
        made["views"] = [torch.rand(count, 3, side, side) for _ in range(3)]
    for name in ("ids", "caption_ids", "augmented_ids"):
        if name == "caption_ids" and not config.loader.second_caption:
            continue
        if locked.is_locked(towers.text):
            made[name.replace("ids", "features") if name != "ids" else "text_features"] = torch.rand(count, towers.text_width)
        else:
            made[name] = torch.ones(count, length, dtype=torch.long)
    if not locked.is_locked(towers.image):
        made["superpixels"] = torch.arange(_patches(config)).expand(count, -1)
    return {**made, "labels": torch.arange(count), **_further_inputs(config, count)}


def _further_inputs(config: Pretrain, count: int) -> dict[str, Any]:
    """What the makers of `train/inputs.py` give, from pictures of a dark square on white; what they cannot make of those is left out."""
    side, made = config.model.image.image_size, dict[str, Any]()
    with _disable_current_modes():
        images = torch.full((count, 3, side, side), 255, dtype=torch.uint8)
        images[:, :, side // 4 : side // 2, side // 4 : side // 2] = 40
        batch = {
            "images": images,
            "texts": [f"square number {i}" for i in range(count)],
            "uids": [str(i) for i in range(count)],
            "pictures": [str(i) for i in range(count)],
            "step": 0,
            "rows": torch.arange(count),
        }
        rows = getattr(config.model, "retrieval", None)
        for need, make in inputs.MAKERS.items():
            with contextlib.suppress(Exception):
                if need in config.objectives.needs and need != "labels":
                    near_NK = None if rows is None else torch.zeros(count, rows.neighbours, dtype=torch.long)
                    kit = inputs.Kit(config, pixels_of(config.model.image), tokenizer.build(config.model.text), near_NK, _detected(config, count))
                    made |= make(batch, kit, torch.device("cpu"))
    return made


def _detected(config: Pretrain, count: int) -> Detections | None:
    """Nothing special, found in every picture."""
    asked = config.model.roi_features
    if asked is None:
        return None
    return Detections(np.zeros((count, asked.regions, WIDTH), np.float16), np.zeros((count, asked.regions), np.int16), ["square, dark square, white"])


def _forward(config: Pretrain, towers: TwoTower, side: str) -> float:
    """FLOPs of one picture or one text through its whole tower, as published tables count them."""
    size, length = config.model.image.image_size, _text_numbers(config)
    given = torch.rand(2, 3, size, size) if side == "image" else torch.ones(2, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        cast(nn.Module, getattr(towers, side))(given)
    return counter.get_total_flops() / 2


def loss_bytes(config: Pretrain, batch: int, rows: int) -> int:
    """Of logits, softmax and gradient, both ways, for every objective that compares `rows` rows with the whole batch."""
    found = 0
    for objective in config.objectives.chosen().values():
        if isinstance(objective, Pairwise):
            found += 2 * 3 * FLOAT * batch * min(rows, objective.chunk_size or rows)
    return found
