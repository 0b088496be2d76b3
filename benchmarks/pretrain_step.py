"""One training step of ours against open_clip's own towers and loss: same architecture, weights, batch, precision and optimiser settings.

    python benchmarks/pretrain_step.py [--rounds 7] [--steps 4]

Each side lives in its own process (peak memory is its own); rounds alternate between the sides, so both see the same moods of the machine.
Data is in memory. `trimmed` is what our loop does: columns of the token matrix that are padding in every row are dropped.
"""

import argparse
import multiprocessing as mp
import platform
import resource
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "pretrain_step.txt"
SIDES = ("open_clip", "ours", "ours, trimmed")
CASES = {
    "clip_tiny (ViT 4x128 /16 at 64 px, text 4x128)": ("clip_tiny", (), 128, "32"),
    "ViT 6x384 /32 at 224 px, text 6x256, 77 tokens": (
        "clip_tiny",
        (
            "model.image={kind: vit, image_size: 224, patch_size: 32, width: 384, layers: 6, heads: 6}",
            "model.text={kind: clip_transformer, width: 256, layers: 6, heads: 4}", "model.width=256",
        ),
        64, "32",
    ),
    "clip_tiny, bf16 autocast": ("clip_tiny", (), 128, "bf16"),
}  # fmt: skip
CAPTIONS = ["a photo of a cat", "red umbrella with rain drops", "two people ride bicycles along the sea in the evening", "해바라기", "office building"]


def serve(side: str, recipe: str, changes: tuple[str, ...], batch_size: int, precision: str, pipe: Connection) -> None:
    """A process of one side: runs steps when told to, answers with seconds and peak memory."""
    import torch

    from vlm_core.models.export import model_config, to_open_clip
    from vlm_core.models.tokenizer import build, trim
    from vlm_core.models.towers import TwoTower
    from vlm_core.objectives import base
    from vlm_core.recipes import pretrain as recipes
    from vlm_core.train import optim

    config = getattr(recipes, recipe)().but(*changes)
    torch.manual_seed(0)
    images_B3HW = torch.randn(batch_size, 3, config.model.image.image_size, config.model.image.image_size)
    ids_BL = build(config.model.text)([CAPTIONS[row % len(CAPTIONS)] for row in range(batch_size)])
    towers = TwoTower(config.model).train()
    objectives, _ = base.build(config.objectives, towers)
    model: Any = towers
    if side == "open_clip":
        import open_clip

        model = open_clip.CLIP(**model_config(config.model), output_dict=True).train()
        model.load_state_dict(to_open_clip(towers.state_dict()))
        their_loss = open_clip.ClipLoss()
    optimizer, _ = optim.build(model, config.optim, 1000)

    def loss() -> torch.Tensor:
        if side == "open_clip":
            return their_loss(**model(images_B3HW, ids_BL))
        batch = {"images": images_B3HW, "ids": trim(ids_BL) if side.endswith("trimmed") else ids_BL}
        out = towers(batch)
        return sum(value for objective in objectives.values() for value in objective(out, batch).values())

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(value.detach())

    pipe.send((0.0, 0.0, step()))  # warm-up; both sides start from the same weights, so the loss must be the same
    while (steps := pipe.recv()) is not None:
        begin = time.perf_counter()
        for _ in range(steps):
            value = step()
        pipe.send((time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, value))


def measure(case: tuple[str, tuple[str, ...], int, str], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    recipe, changes, batch_size, precision = case
    context = mp.get_context("spawn")
    found: dict[str, dict[str, Any]] = {side: {"rates": [], "memory": 0.0} for side in SIDES}
    pipes = {}
    for side in SIDES:
        here, there = context.Pipe()
        context.Process(target=serve, args=(side, recipe, changes, batch_size, precision, there), daemon=True).start()
        found[side]["first_loss"] = here.recv()[2]
        pipes[side] = here
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send(steps)
            seconds, memory, _loss = pipe.recv()
            found[side]["rates"].append(steps * batch_size / seconds)
            found[side]["memory"] = memory
    for pipe in pipes.values():
        pipe.send(None)
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    lines = [
        f"# benchmarks/pretrain_step.py --rounds {args.rounds} --steps {args.steps}",
        f"# Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, no GPU; sides take turns, round by round",
        "# ratio: median over rounds of ours / open_clip (min to max); memory: peak resident of the process, in MB",
    ]
    for name, case in CASES.items():
        found = measure(case, args.rounds, args.steps)
        base = found["open_clip"]
        lines.append(f"\n{name}, batch {case[2]}, precision {case[3]}")
        for side in SIDES:
            ratios = [mine / theirs for mine, theirs in zip(found[side]["rates"], base["rates"], strict=True)]
            lines.append(
                f"  {side:14} {statistics.median(found[side]['rates']):8.1f} pairs/s   ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                f"   memory {found[side]['memory']:6.0f} (ratio {found[side]['memory'] / base['memory']:.2f})   first loss {found[side]['first_loss']:.5f}"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
