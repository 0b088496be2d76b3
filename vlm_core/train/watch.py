"""What is watched while a model trains: how embeddings spread, what the hardware achieves, how held-out pairs are found."""

# B pairs, D joint width

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlm_core.stage import write_json

ROWS = 512  # of a batch, at most, that spread is measured on
COLLAPSED_COSINE, COLLAPSED_RANK = 0.98, 1.5
SPREADS = ("image_cosine", "text_cosine", "image_rank", "text_rank")
HELD_OUT, NEAREST, SHOWN = "heldout.json", "nearest", 4
# dense bf16 operations per second of one device, as its maker states them
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "A10": 125e12, "L4": 121e12}


def spread(x_BD: Tensor) -> tuple[float, float]:
    """(mean cosine between two different rows, effective rank) of unit-norm embeddings; 1 and 1 where all are the same.

    Effective rank: exp of the entropy of the singular values' shares (RankMe, arXiv 2210.02885); between 1 and min(B, D).
    """
    x_BD = x_BD[:ROWS].float()
    count = len(x_BD)
    cosine = (x_BD.sum(0).square().sum() - x_BD.square().sum()) / max(count * (count - 1), 1)
    shares = torch.linalg.svdvals(x_BD)
    shares = shares / shares.sum()
    return float(cosine), float(torch.special.entr(shares).sum().exp())


def spreads(seen: tuple[Tensor, Tensor], settled: bool) -> dict[str, float]:
    """Spread of pictures and texts; `collapsed` is 1 where one of them has fallen together. `settled`: untrained towers look collapsed and are let off."""
    (image_cosine, image_rank), (text_cosine, text_rank) = map(spread, seen)
    fallen = max(image_cosine, text_cosine) > COLLAPSED_COSINE or min(image_rank, text_rank) < COLLAPSED_RANK
    return {"image_cosine": image_cosine, "text_cosine": text_cosine, "image_rank": image_rank, "text_rank": text_rank, "collapsed": float(settled and fallen)}


def alarm(row: Mapping[str, float]) -> str:
    """What is said about embeddings that have fallen together."""
    return (
        f"COLLAPSE: found embeddings with mean cosine {row['image_cosine']:.3f} (pictures) and {row['text_cosine']:.3f} (texts), effective rank "
        f"{row['image_rank']:.1f} and {row['text_rank']:.1f}, expected below {COLLAPSED_COSINE} and above {COLLAPSED_RANK}; lower optim.lr, raise warmup or look at the pairs; step"
    )


def flops_of(forward: Callable[[], Any]) -> tuple[Any, float]:
    """(result, floating-point operations of forward and backward): three times those of forward; what is made again is not counted twice."""
    with FlopCounterMode(display=False) as counter:
        result = forward()
    return result, 3.0 * counter.get_total_flops()


def peak_of(device: torch.device) -> float | None:
    """Operations per second that the device is sold with; none where we do not know it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK.items() if part in name), None)


def term_norms(terms: Mapping[str, Tensor], weight_of: Callable[[str], float], module: nn.Module, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Norm of the gradient of each term as it enters the sum; one more backward pass for each."""
    learning = [value for value in module.parameters() if value.requires_grad]
    found = dict[str, float]()
    for name, value in terms.items():
        grads = torch.autograd.grad(value, learning, retain_graph=True, allow_unused=True)
        flat = torch.cat([torch.zeros_like(own).flatten() if grad is None else grad.flatten() for own, grad in zip(learning, grads, strict=True)])
        found[f"norm.{name}"] = weight_of(name) * float(average(flat).norm())
    return found


class HeldOut(Callback):
    """Every N steps the first rank looks at held-out pairs with the weights as they would be published.

    Args:
        folder: gets one row of numbers each time, and a sheet of pictures with their nearest captions.
        every: steps.
        look: sheet -> numbers, of the towers as they are.
        tell: is told the numbers and the step.
    """

    def __init__(self, folder: Path, every: int, look: Callable[[Path], dict[str, float]], tell: Callable[[Mapping[str, float], int], None]) -> None:
        self.folder, self.every, self.look, self.tell = folder, every, look, tell

    def on_train_batch_end(self, trainer: lightning.Trainer, loop: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every or not trainer.is_global_zero:
            return
        (self.folder / NEAREST).mkdir(exist_ok=True)
        with loop.published(), torch.random.fork_rng():
            found = self.look(self.folder / NEAREST / f"step-{step:08d}.png")
        rows = [row for row in held_out_rows(self.folder) if row["step"] < step]
        write_json(self.folder / HELD_OUT, [*rows, {"step": step, **found}])
        self.tell({name.replace("quick.", "heldout."): value for name, value in found.items()}, step)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a report says of what was watched: typical waiting and use of the hardware, spread at the end, the share of rows with an alarm."""
    typical = {name: statistics.median(row[name] for row in rows) for name in ("data_wait", "mfu") if name in rows[-1]}
    return {**typical, **{name: rows[-1][name] for name in SPREADS}, "collapsed": statistics.fmean(row["collapsed"] for row in rows)}


def sheets(folder: Path, pictures: Path) -> dict[str, str]:
    """Copies of a few sheets of nearest captions, from early to late: title -> file."""
    found = sorted((folder / NEAREST).glob("step-*.png"))
    shown = [found[round(place * (len(found) - 1) / (SHOWN - 1))] for place in range(SHOWN)] if len(found) > SHOWN else found
    for sheet in shown:
        shutil.copyfile(sheet, pictures / f"nearest_{sheet.name}")
    return {f"nearest captions at step {int(sheet.stem.removeprefix('step-')):,}": f"nearest_{sheet.name}" for sheet in shown}


def held_out_rows(folder: Path) -> list[dict[str, float]]:
    """What held-out pairs said so far, by step."""
    file = folder / HELD_OUT
    rows: list[dict[str, float]] = json.loads(file.read_text()) if file.exists() else []
    return rows
