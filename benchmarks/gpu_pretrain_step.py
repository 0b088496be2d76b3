"""A training step on one GPU in bf16, ViT-B/32 and ViT-B/16: speed, use of the hardware, memory, largest batch, what compiling gains.

    python -m benchmarks.gpu_pretrain_step [--steps 20] [--batch 256] [--out FILE]

Largest batch: doubled until memory is full, at once and in parts of 128 by the gradient cache, with blocks made again and without.
MFU: floating-point operations of forward and backward (torch's counter, what is made again not counted) per second / the maker's dense bf16 peak.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "gpu_pretrain_step.txt"
PATCHES, PART, MOST = (32, 16), 128, 65_536


def stepper(patch: int, batch: int, part: int | None, again: bool) -> tuple[Callable[[], Any], Any]:
    """(one optimiser step, the body)."""
    import torch

    from vlm_core.objectives import base
    from vlm_core.recipes.pretrain.base import clip_vit_b32
    from vlm_core.train import blocks, grad_cache, optim, ranks
    from vlm_core.train.body import Body
    from vlm_core.train.pretrain import first_towers

    config = clip_vit_b32().but(f"model.image.patch_size={patch}")
    towers = first_towers(config, "").cuda()
    body = Body(towers, *base.build(config.objectives, towers), config.objectives.needs).cuda()
    if again:
        blocks.checkpoint_blocks(towers)
    optimizer, _ = optim.build(body, config.optim, 1000)
    ids = torch.randint(1, 49_000, (batch, 77), device="cuda")
    ids[:, -1] = 49_407
    given = {"images": torch.randn(batch, 3, 224, 224, device="cuda"), "ids": ids}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            left, *_ = grad_cache.whole_step(body, given) if part is None else grad_cache.cached_step(body, given, part)
        left.backward()
        ranks.clip(body.parameters(), 1.0)
        optimizer.step()

    return step, body


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds of a step."""
    import torch

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def fits(patch: int, batch: int, part: int | None, again: bool) -> bool:
    import torch

    try:
        step, _ = stepper(patch, batch, part, again)
        step()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    else:
        return True


def largest(patch: int, part: int | None, again: bool) -> int:
    """The largest power of two that fits."""
    import torch

    batch = PART
    while batch < MOST and fits(patch, 2 * batch, part, again):
        batch *= 2
        torch.cuda.empty_cache()
    torch.cuda.empty_cache()
    return batch


def speed(patch: int, batch: int, steps: int) -> list[str]:
    import torch

    from vlm_core.train import probe, watch

    torch.cuda.reset_peak_memory_stats()
    step, body = stepper(patch, batch, None, again=False)
    _, flops = watch.flops_of(step)
    flops /= 3  # the counter saw backward as well
    peak, lines = watch.peak_of(torch.device("cuda")), list[str]()
    for how in ("plain", "compiled"):
        probe.switch(body, how == "compiled")
        seconds = timed(step, steps)
        use = f"MFU {flops / seconds / peak:.3f}" if peak else f"{flops / seconds / 1e12:.1f} TFLOP/s"
        lines.append(f"  {how:10} {batch / seconds:8.0f} pairs/s   {use}   memory {torch.cuda.max_memory_allocated() / 1e9:6.2f} GB")
    return lines


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "Found no GPU on this machine, expected one for this benchmark; run it where torch.cuda.is_available(), or run python -m benchmarks.pretrain_step."
        )
    text = (
        f"# benchmarks/gpu_pretrain_step.py --steps {args.steps} --batch {args.batch}\n"
        f"# Python {platform.python_version()}, torch {torch.__version__}, {torch.cuda.get_device_name()}, bf16 autocast, data in memory\n"
    )
    for patch in PATCHES:
        text += f"\nViT-B/{patch} at 224 px, text 12x512, 77 tokens, batch {args.batch}\n" + "\n".join(speed(patch, args.batch, args.steps)) + "\n"
        for how, part in (("at once", None), (f"in parts of {PART}", PART)):
            for again in (False, True):
                text += f"  largest batch {how}{', blocks made again' if again else ''}: {largest(patch, part, again):,}\n"
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
