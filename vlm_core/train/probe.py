"""Is torch.compile worth it here? A few steps with it and without, taking turns, on the first batch; the faster way is kept if both agree.

Blocks are compiled one by one (they share their code, so it is compiled once), not the whole model. The answer is kept beside the checkpoints, so that a
continued run computes as before.
"""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from vlm_core.objectives.base import full_precision
from vlm_core.objectives.gather import of_first
from vlm_core.stage import write_json
from vlm_core.train.blocks import blocks_of
from vlm_core.train.body import Batch, Body

ANSWER = "compile.json"
STEPS = 3
AGREE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # largest relative difference of the loss and of the gradient's norm
GAIN = 1.02  # a smaller gain is not worth the time that compiling takes


class Probe(Callback):
    """Args: first: the first batch of the run, as prepared; folder: keeps the answer; say: is told it."""

    def __init__(self, first: Callable[[], Batch], precision: torch.dtype, folder: Path, say: Callable[[str], None]) -> None:
        self.first, self.precision, self.folder, self.say = first, precision, folder, say

    def on_fit_start(self, trainer: lightning.Trainer, loop: Any) -> None:
        self.say(decide(loop.model, self.first, self.precision, self.folder))


def decide(body: Body, batch: Callable[[], Batch], precision: torch.dtype, folder: Path) -> str:
    """Leave the blocks compiled or not; returns what was found, in words."""
    file, blocks = folder / ANSWER, list(blocks_of(body.towers))
    if file.exists():
        answer = json.loads(file.read_text())
        switch(body, answer["compiled"])
        return f"as before: {answer['said']}"
    compiled, said = _measured(body, batch(), precision) if blocks else (False, "not compiled: the towers have no blocks")
    switch(body, compiled)
    write_json(file, {"compiled": compiled, "said": said})
    return said


def switch(body: Body, on: bool) -> None:
    for block in blocks_of(body.towers):
        if on:
            block.compile()
        else:
            block._compiled_call_impl = None


def _measured(body: Body, batch: Batch, precision: torch.dtype) -> tuple[bool, str]:
    compiled: dict[int, Any] = {}
    blocks = list(blocks_of(body.towers))
    try:
        switch(body, True)
        compiled = {id(block): block._compiled_call_impl for block in blocks}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's advice on code that is not ours
            found = _one(body, batch, precision)
    except Exception as error:  # noqa: BLE001  every way in which a compiler can fail means the same here
        return False, f"not compiled: the compiler failed ({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]})"
    switch(body, False)
    expected = _one(body, batch, precision)
    apart = max(abs(mine - theirs) / max(abs(theirs), 1e-6) for mine, theirs in zip(found[:2], expected[:2], strict=True))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(STEPS):
        for way, taken in seconds.items():
            for block in blocks:
                block._compiled_call_impl = compiled[id(block)] if way else None
            taken.append(_one(body, batch, precision)[2])
    gain = float(of_first(torch.tensor(min(seconds[False]) / min(seconds[True]))))
    apart = float(of_first(torch.tensor(apart)))
    if apart > AGREE[precision]:
        return False, f"not compiled: found a loss or gradient {apart:.1e} apart, expected at most {AGREE[precision]:.0e}"
    if gain < GAIN:
        return False, f"not compiled: {gain:.2f} times the speed without"
    return True, f"compiled: {gain:.2f} times the speed without"


def _one(body: Body, batch: Batch, precision: torch.dtype) -> tuple[float, float, float]:
    """(loss, norm of the gradient, seconds) of one step that changes nothing: not the weights, nor queues, nor random numbers."""
    device = body.towers.log_scale.device
    buffers = {name: value.clone() for name, value in body.named_buffers()}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            begin = time.perf_counter()
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                total, _ = body(batch)
                with full_precision(device):
                    total.backward()
            norm = torch.stack([value.grad.norm() for value in body.parameters() if value.grad is not None]).norm()
            return float(total.detach()), float(norm), time.perf_counter() - begin
    finally:
        body.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in body.named_buffers():
                value.copy_(buffers[name])
