"""What a recipe needs, what it takes on given machines, and whether it fits, before anything is read or bought (`vlm pretrain --plan`).

Memory of a process = weights, gradients and Adam's means (16 bytes a learning number), queues and slow copies (4), activations of its pairs, losses over all
pairs, and a reserve of the machine. Time = FLOPs of all pairs seen / (peak x the share of it that training reaches x devices). Under the gradient cache the
towers keep what belongs to a part and run forward once more; what objectives do with features is kept for all rows of a process.
"""

import math
import os
from typing import NamedTuple

from vlm_core.errors import ConfigError, Incompatible, did_you_mean
from vlm_core.train.config import Pretrain
from vlm_core.train.cost import ADAM, FLOAT, Cost, cost_of, loss_bytes

GB = 1e9


class Machine(NamedTuple):
    """A kind of device; `peak` in TFLOP/s of dense matrices by precision, `reached` the share of it that training is assumed to reach (MFU)."""

    name: str
    memory_gb: float
    peak_bf16: float
    peak_32: float
    reached: float
    reserve_gb: float  # libraries, workspaces, fragments
    shared: bool = False  # all processes of a run share this memory
    devices: int = 0  # 0: as many as the recipe says


# Data sheets, dense, bfloat16 with float32 sums; float32 on the tensor cores (TF32) is off in this platform.
MACHINES = {
    "h100": Machine("h100", 80, 989, 67, 0.40, 2),
    "a100": Machine("a100", 80, 312, 19.5, 0.45, 2),
    "4090": Machine("4090", 24, 165, 82.6, 0.40, 1),
}
CORE_TFLOPS, CORE_REACHED = 0.05, 0.3  # of one core with AVX2 in float32, and of matrices as small as those of the tiny recipes


SMALL = 2**20  # pixels of a step up to which `require` does not ask, if it has less than FEW_PAIRS: what the tiny recipes see fits anywhere
FEW_PAIRS = 512


def this_machine(accelerator: str = "cpu") -> Machine:
    """The GPU or processor that this process runs on; a core is taken as 50 GFLOP/s, a GPU's speed as that of an A100."""
    import psutil
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return MACHINES["a100"]._replace(name="this GPU", memory_gb=torch.cuda.get_device_properties(0).total_memory / GB)

    speed = CORE_TFLOPS * (os.cpu_count() or 1)
    return Machine("cpu", psutil.virtual_memory().total / GB, speed, speed, CORE_REACHED, 0.7, shared=True)


def machine(text: str) -> Machine:
    """`h100`, `a100:16`, `cpu`, or `name,memory_gb=48,tflops=180,reached=0.35:4`. Raises ConfigError."""
    head, _, count = text.partition(":")
    name, *further = head.split(",")
    try:
        given = {key: float(value) for key, _, value in (part.partition("=") for part in further)}
        devices = int(count or 0)
    except ValueError:
        raise ConfigError(f"Found the machine {text!r}, expected NAME[,memory_gb=N,tflops=N,reached=N][:DEVICES]; write for instance a100:8.") from None
    if unknown := sorted(given.keys() - {"memory_gb", "tflops", "reached"}):
        raise ConfigError(
            f"Found {unknown[0]!r} of the machine {text!r}, expected memory_gb, tflops or reached; {did_you_mean(unknown[0], ['memory_gb', 'tflops', 'reached'])}"
        )
    base = this_machine() if name == "cpu" else MACHINES.get(name)
    if base is None:
        if not {"memory_gb", "tflops"} <= given.keys():
            raise ConfigError(f"Found the machine {name!r}, expected a known one or its memory_gb and tflops; {did_you_mean(name, [*MACHINES, 'cpu'])}")
        base = Machine(name, 0, 0, 0, 0.4, 1)
    speed = given.get("tflops")
    return base._replace(
        memory_gb=given.get("memory_gb", base.memory_gb), peak_bf16=speed or base.peak_bf16, peak_32=speed or base.peak_32,
        reached=given.get("reached", base.reached), devices=devices,
    )  # fmt: skip


class Estimate(NamedTuple):
    """One recipe on one machine; bytes are those of one process."""

    machine: Machine
    devices: int
    weights: float
    optimiser: float  # gradients and Adam's means
    state: float
    activations: float
    losses: float
    hours: float
    refusal: str  # one sentence, or ''

    @property
    def total(self) -> float:
        return self.weights + self.optimiser + self.state + self.activations + self.losses


def estimate(config: Pretrain, cost: Cost, where: Machine, seen: int) -> Estimate:
    """What a run of `seen` pairs takes on a machine, and whether it fits there."""
    devices = where.devices or config.fit.devices
    rows = math.ceil(config.loader.batch_size / devices)
    held = min(rows, config.fit.micro_batch or rows)
    cached = held < rows and config.fit.gradients == "cached"
    whole = cost.activations - cost.of_towers if cached else 0.0  # what objectives do with features is kept for all rows
    peak = where.peak_bf16 if config.fit.precision == "bf16" else where.peak_32
    found = Estimate(
        where, devices, FLOAT * sum(cost.parameters.values()), (FLOAT + ADAM) * cost.learning, FLOAT * cost.state,
        (cost.activations - whole) * held + whole * rows, loss_bytes(config, config.loader.batch_size, rows),
        seen * (cost.flops + cached * cost.once) / (peak * 1e12 * where.reached * devices) / 3600, "",
    )  # fmt: skip
    return found._replace(refusal=_refusal(config, cost, found, rows))


def _refusal(config: Pretrain, cost: Cost, found: Estimate, rows: int) -> str:
    where = found.machine
    sharers = found.devices if where.shared else 1
    room = (where.memory_gb / sharers - where.reserve_gb) * GB
    if found.total <= room:
        return ""
    of = f"one of {found.devices} processes, which share {where.memory_gb:,.0f} GB," if sharers > 1 else f"{rows:,} pairs on one device"
    said = f"Found that {of} take {found.total / GB:,.1f} GB on {where.name}, expected at most {max(room, 0) / GB:,.1f} GB; "
    fixed = found.weights + found.optimiser + found.state
    if fixed >= room:
        return said + f"weights and optimiser alone are {fixed / GB:,.1f} GB: choose a smaller model or a machine with more memory."
    ways = []
    pairs = int((room - fixed - found.losses) // cost.activations) if cost.activations else 0
    if pairs >= 1 and pairs < rows:
        ways += [f"loader.batch_size={pairs * found.devices}", *([f"fit.micro_batch={pairs} (gradient cache)"] if hasattr(config.fit, "micro_batch") else [])]
        ways += [] if where.shared else [f"{math.ceil(config.loader.batch_size / pairs)} devices"]
    if found.losses > 0.1 * room:
        ways.append("a chunk_size of 1024 or less in the objectives that compare all pairs")
    if hasattr(config.fit, "checkpoint_blocks") and not config.fit.checkpoint_blocks:
        ways.append("fit.checkpoint_blocks=true")
    return said + f"what would fit: {', or '.join(ways or ['a machine with more memory'])}."


def require(config: Pretrain, where: Machine | None = None) -> None:
    """Raises Incompatible when a recipe whose steps are not small cannot be trained here, before any data is read."""
    pixels = 0 if config.model.image.locked else config.loader.batch_size * config.model.image.image_size**2
    if (pixels > SMALL or config.loader.batch_size >= FEW_PAIRS) and (
        refusal := estimate(config, cost_of(config), where or this_machine(config.fit.accelerator), 0).refusal
    ):
        raise Incompatible(refusal)


def text_of(recipe: str, config: Pretrain, cost: Cost, rows: list[Estimate], seen: int, why: str) -> str:
    """The plan for people."""
    parts = ", ".join(f"{name} {size:,}" for name, size in cost.parameters.items())
    lines = [
        f"recipe            {recipe}",
        f"parameters        {sum(cost.parameters.values()):,} ({parts}), {cost.learning:,} of them learn",
        f"FLOPs             {cost.flops / 1e9:,.2f} G a pair, forward and backward (one picture forward {cost.forward['image'] / 1e9:,.2f} G, one text {cost.forward['text'] / 1e9:,.2f} G)",
        f"activations       {cost.activations / 1e6:,.1f} MB a pair in {config.fit.precision}",
        f"batch             {config.loader.batch_size:,} pairs over {config.fit.devices} device(s)",
        f"pairs seen        {seen:,} ({why})",
    ]
    if cost.guessed:
        lines.append(f"guessed           FLOPs of {', '.join(cost.guessed)}, from their parameters")
    head = f"{'machine':14} {'devices':>7} {'weights':>8} {'optim.':>8} {'state':>7} {'activ.':>8} {'losses':>7} {'GB each':>8} {'has':>6} {'hours':>10} {'device-h':>10} {'reached':>7}"
    lines += ["", head]
    for row in rows:
        sizes = [value / GB for value in (row.weights, row.optimiser, row.state, row.activations, row.losses, row.total)]
        lines.append(
            f"{row.machine.name:14} {row.devices:7} {sizes[0]:8.2f} {sizes[1]:8.2f} {sizes[2]:7.2f} {sizes[3]:8.2f} {sizes[4]:7.2f} {sizes[5]:8.2f} "
            f"{row.machine.memory_gb:6.0f} {row.hours:10,.2f} {row.hours * row.devices:10,.2f} {row.machine.reached:7.0%}"
        )
    lines += [f"does not fit      {row.machine.name}: {row.refusal}" for row in rows if row.refusal]
    return "\n".join(lines)
