"""A training step on one GPU in bf16, ViT-B/32 and ViT-B/16, CLIP and SigLIP: ours against open_clip's towers and loss, memory, largest batch, what compiling gains.

    python -m benchmarks.gpu_pretrain_step [--steps 20] [--batch 256] [--out FILE]

Same architecture, batch in memory, precision and optimiser settings on both sides; rounds alternate between them.
Largest batch: doubled until memory is full, at once and in parts of 128 by the gradient cache, with blocks made again and without.
MFU: floating-point operations of forward and backward (torch's counter, what is made again not counted) per second / the maker's dense bf16 peak.
"""

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULT = Path(__file__).parent / "results" / "gpu_pretrain_step.txt"
PATCHES, PART, MOST, ROUNDS = (32, 16), 128, 65_536, 5
SIGMOID = ("objectives.image_text_contrastive=null", "objectives.sigmoid={}", "model.scale.init=10", "model.scale.bias=-10")


class Case(NamedTuple):
    patch: int
    sigmoid: bool
    batch: int
    part: int | None = None
    again: bool = False  # blocks made again in backward


def stepper(case: Case, side: str = "ours") -> tuple[Callable[[], Any], Any]:
    """(one optimiser step, what learns)."""
    import torch

    from vlm_core.objectives import base
    from vlm_core.recipes.pretrain.base import clip_vit_b32
    from vlm_core.train import blocks, grad_cache, optim, ranks
    from vlm_core.train.body import Body
    from vlm_core.train.pretrain import first_towers

    config = clip_vit_b32().but(f"model.image.patch_size={case.patch}", *(SIGMOID if case.sigmoid else ()))
    towers = first_towers(config, "").cuda()
    body = Body(towers, *base.build(config.objectives, towers), config.objectives.needs).cuda()
    if case.again:
        blocks.checkpoint_blocks(towers)
    model: Any = body
    if side == "open_clip":
        import open_clip

        from vlm_core.models.export import model_config, to_open_clip

        model, loss = (
            open_clip.CLIP(**model_config(config.model), output_dict=True).train(),
            (open_clip.loss.SigLipLoss if case.sigmoid else open_clip.ClipLoss)(),
        )
        model.load_state_dict(to_open_clip(towers.state_dict()))
        model.cuda()
        del body, towers
        optimizer = torch.optim.AdamW(
            [
                {"params": [value for value in model.parameters() if value.ndim >= 2], "weight_decay": config.optim.weight_decay},
                {"params": [value for value in model.parameters() if value.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.optim.lr, betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps, foreach=True,
        )  # fmt: skip
    else:
        optimizer, _ = optim.build(body, config.optim, 1000)
    ids = torch.randint(1, 49_000, (case.batch, 77), device="cuda")
    ids[:, -1] = 49_407
    given = {"images": torch.randn(case.batch, 3, 224, 224, device="cuda"), "ids": ids}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            if side == "open_clip":
                left = loss(**model(given["images"], given["ids"]))
            else:
                left, *_ = grad_cache.whole_step(model, given) if case.part is None else grad_cache.cached_step(model, given, case.part)
        left.backward()
        ranks.clip(model.parameters(), 1.0)
        optimizer.step()

    return step, model


def release() -> None:
    """Give back what the last model held: cycles of tensors and hooks, then the allocator's blocks."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds of a step."""
    import torch

    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def fits(case: Case) -> bool:
    import torch

    release()
    try:
        step, _ = stepper(case)
        step()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    else:
        return True


def largest(case: Case) -> int:
    """The largest batch that fits, a power of two times PART."""
    batch = PART
    while batch < MOST and fits(case._replace(batch=2 * batch)):
        batch *= 2
    release()
    return batch


def speed(case: Case, steps: int) -> list[str]:
    """Lines of a table: ratios against open_clip, round by round; each side's memory is measured with that side alone on the device."""
    import torch

    from vlm_core.train import probe, watch

    peak, rows, rates = watch.peak_of(torch.device("cuda")), dict[str, tuple[float, float]](), dict[str, list[float]]()
    for how in ("open_clip", "ours", "ours, compiled"):  # one after the other for memory
        release()
        step, model = stepper(case, how.partition(",")[0])
        _, flops = watch.flops_of(step)
        if how == "ours, compiled":
            probe.switch(model, True)
        timed(step, 3)
        torch.cuda.reset_peak_memory_stats()
        timed(step, 2)
        rows[how] = torch.cuda.max_memory_allocated() / 1e9, flops / 3  # the counter saw backward as well
        del step, model
    release()
    sides = {how: stepper(case, how.partition(",")[0]) for how in rows}
    probe.switch(sides["ours, compiled"][1], True)
    for step, _ in sides.values():
        timed(step, 3)
    for _ in range(ROUNDS):
        for how, (step, _) in sides.items():
            rates.setdefault(how, []).append(case.batch / timed(step, steps))
    lines = list[str]()
    for how, found in rates.items():
        rate, ratios = statistics.median(found), [mine / other for mine, other in zip(found, rates["open_clip"], strict=True)]
        work = rows["ours"][1] * rate / case.batch
        use = f"MFU {work / peak:.3f}" if peak else f"{work / 1e12:.1f} TFLOP/s"
        lines.append(
            f"  {how:15} {rate:8.0f} pairs/s   ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})   {use}   memory {rows[how][0]:6.2f} GB"
        )
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
        for sigmoid in (False, True):
            case = Case(patch, sigmoid, args.batch)
            text += (
                f"\n{'SigLIP' if sigmoid else 'CLIP'} ViT-B/{patch} at 224 px, text 12x512, 77 tokens, batch {args.batch}\n"
                + "\n".join(speed(case, args.steps))
                + "\n"
            )
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(text)
        for how, part in (("at once", None), (f"in parts of {PART}", PART)):
            for again in (False, True):
                text += f"  largest batch {how}{', blocks made again' if again else ''}: {largest(Case(patch, False, PART, part, again)):,}\n"
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
