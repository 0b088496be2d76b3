"""One training step of ours against open_clip's own towers and loss: same architecture, weights, batch, precision and optimiser settings.

    python -m benchmarks.pretrain_step [--rounds 5] [--steps 3] [--cases tiny,small,base,bf16,siglip_tiny,..] [--without loaders,cache] [--out FILE]

Each side lives in its own process (peak memory is its own); rounds alternate between the sides, so both see the same moods of the machine.

    in memory   one batch, made beforehand. `trimmed` is what our loop does: columns of the token matrix that are padding in every row are dropped.
    loaders     every step reads: ours with TrainLoader, theirs with open_clip's own pipeline (webdataset, PIL, torchvision) on the same tars, no workers.
    cache       our step on a batch at once, in parts by the gradient cache, and with blocks made again, too: memory and speed.
"""

import argparse
import multiprocessing as mp
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

RESULT = Path(__file__).parent / "results" / "pretrain_step.txt"
CAPTIONS = ["a photo of a cat", "red umbrella with rain drops", "two people ride bicycles along the sea in the evening", "해바라기", "office building"]


class Case(NamedTuple):
    what: str
    changes: tuple[str, ...]  # to clip_tiny
    batch: int
    precision: str = "32"
    sigmoid: bool = False


SMALL = (
    "model.image={kind: vit, image_size: 224, patch_size: 32, width: 384, layers: 6, heads: 6}", "model.width=256",
    "model.text={kind: clip_transformer, width: 256, layers: 6, heads: 4}",
)  # fmt: skip
BASE = ("model.image={kind: vit}", "model.text={kind: clip_transformer}", "model.width=512")
CASES = {
    "tiny": Case("clip_tiny (ViT 4x128 /16 at 64 px, text 4x128)", (), 128),
    "small": Case("ViT 6x384 /32 at 224 px, text 6x256, 77 tokens", SMALL, 64),
    "base": Case("ViT-B/32 at 224 px, text 12x512, 77 tokens", BASE, 16),
    "bf16": Case("clip_tiny, bf16 autocast", (), 128, "bf16"),
}
SIGMOID = ("objectives.image_text_contrastive=null", "objectives.sigmoid={}", "model.scale.init=10", "model.scale.bias=-10")
CASES |= {
    f"siglip_{name}": case._replace(what=f"SigLIP, {case.what}", changes=(*case.changes, *SIGMOID), sigmoid=True)
    for name, case in CASES.items()
    if name != "bf16"
}
IN_MEMORY, LOADERS = ("open_clip", "ours", "ours, trimmed"), ("open_clip, own loader", "ours, own loader")
CACHE = ("at once", "in 8 parts", "in 8 parts, blocks again")


def batches_of(side: str, config: Any, shards: Path, count: int) -> Iterator[tuple[Any, Any]]:
    """(normalised pictures, ids), from memory or from the side's own loader."""
    import torch

    from vlm_core.models.pixels import pixels_of
    from vlm_core.models.tokenizer import build, trim

    tokenize, pixels = build(config.model.text), pixels_of(config.model.image)
    if side == "ours, own loader":
        from vlm_core.data.config import Loader
        from vlm_core.data.shards.loader import TrainLoader
        from vlm_core.data.shards.samples import ShardSamples

        for batch in TrainLoader(ShardSamples(shards), Loader(batch_size=count), pixels, steps=10**9):
            yield pixels.normalise(batch["images"]), trim(tokenize(batch["texts"]))
    elif side == "open_clip, own loader":
        yield from theirs(config, shards, count)
    images = torch.randn(count, 3, pixels.size_px, pixels.size_px, generator=torch.Generator().manual_seed(0))
    ids = tokenize([CAPTIONS[row % len(CAPTIONS)] for row in range(count)])
    while True:
        yield images, ids if side in ("open_clip", "ours") else trim(ids)


def theirs(config: Any, shards: Path, count: int) -> Iterator[tuple[Any, Any]]:
    """open_clip_train.data.get_wds_dataset without its arguments: the same stages in the same order, captions from our JSON instead of .txt."""
    import open_clip
    import torch
    import webdataset

    from vlm_core.data.shards.shards import read_manifest

    see, tokenize = open_clip.image_transform(config.model.image.image_size, is_train=True), open_clip.get_tokenizer("ViT-B-32")
    tars = [str(shards / entry["name"]) for entry in read_manifest(shards)["shards"] if entry["split"] == "train"]
    while True:
        data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pilrgb").rename(image="jpg", text="json")
        pairs = data.map_dict(image=see, text=lambda record: tokenize(record["captions"][0]["text"])[0]).to_tuple("image", "text")
        for images, ids in pairs.batched(count, partial=False):
            yield torch.as_tensor(images), torch.as_tensor(ids)[:, : config.model.text.context_length]


def stepper(side: str, case: Case, shards: Path) -> Callable[[], float]:
    """One optimiser step of a side; gives the loss."""
    import torch

    from vlm_core.models.export import model_config, to_open_clip
    from vlm_core.objectives import base
    from vlm_core.recipes.pretrain.base import clip_tiny
    from vlm_core.train import blocks, grad_cache, optim
    from vlm_core.train.body import Body
    from vlm_core.train.pretrain import first_towers

    config = clip_tiny().but(*case.changes)
    towers = first_towers(config, "")
    body, given = Body(towers, *base.build(config.objectives, towers), config.objectives.needs), batches_of(side, config, shards, case.batch)
    model: Any = body
    if side.startswith("open_clip"):
        import open_clip

        model, their_loss = (
            open_clip.CLIP(**model_config(config.model), output_dict=True).train(),
            (open_clip.loss.SigLipLoss if case.sigmoid else open_clip.ClipLoss)(),
        )
        model.load_state_dict(to_open_clip(towers.state_dict()))
    if side.endswith("blocks again"):
        blocks.checkpoint_blocks(towers)
    optimizer, _ = optim.build(body, config.optim, 1000)
    if side.startswith("open_clip"):
        decayed = [value for value in model.parameters() if value.ndim >= 2]
        free = [value for value in model.parameters() if value.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": free, "weight_decay": 0.0}],
            lr=1e-3 / 50, betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps, foreach=True,
        )  # fmt: skip

    def step() -> float:
        images, ids = next(given)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            if side.startswith("open_clip"):
                left = total = their_loss(**model(images, ids))
            elif side.startswith("in 8"):
                left, total, _ = grad_cache.cached_step(body, {"images": images, "ids": ids}, case.batch // 8)
            else:
                left, total, _ = grad_cache.whole_step(body, {"images": images, "ids": ids})
        left.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(total.detach())

    return step


def serve(side: str, case: Case, shards: Path, pipe: Connection) -> None:
    """A process of one side: runs steps when told to, answers with seconds, peak memory and loss."""
    from vlm_core.stage import own_peak_mb

    step = stepper(side, case, shards)
    pipe.send((0.0, 0.0, step()))  # warm-up; in memory both sides start from the same weights and batch, so the loss must be the same
    while (steps := pipe.recv()) is not None:
        begin = time.perf_counter()
        for _ in range(steps):
            loss = step()
        pipe.send((time.perf_counter() - begin, own_peak_mb(), loss))


def measure(case: Case, sides: Sequence[str], shards: Path, rounds: int, steps: int) -> list[str]:
    """Lines of a table; ratios against the first side, round by round."""
    context, pipes, processes = mp.get_context("spawn"), dict[str, Connection](), []
    found: dict[str, dict[str, Any]] = {side: {"rates": [], "memory": 0.0} for side in sides}
    for side in sides:
        pipes[side], there = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, case, shards, there), daemon=True))
        processes[-1].start()
        found[side]["first"] = pipes[side].recv()[2]
    for turn in range(rounds):
        for side, pipe in pipes.items():
            pipe.send(steps)
            seconds, found[side]["memory"], _ = pipe.recv()
            found[side]["rates"].append(steps * case.batch / seconds)
        print(f"  {case.what}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    first, lines = found[sides[0]], list[str]()
    for side in sides:
        ratios = [mine / other for mine, other in zip(found[side]["rates"], first["rates"], strict=True)]
        lines.append(
            f"  {side:26} {statistics.median(found[side]['rates']):8.1f} pairs/s   ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"   memory {found[side]['memory']:6.0f} (ratio {found[side]['memory'] / first['memory']:.2f})   first loss {found[side]['first']:.5f}"
        )
    return lines


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--without", default="", help="parts that are left out: loaders, cache")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    text = (
        f"# benchmarks/pretrain_step.py --rounds {args.rounds} --steps {args.steps} --cases {args.cases} --without '{args.without}'\n"
        f"# Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, no GPU; sides take turns, round by round\n"
        "# ratio: median over rounds of a side / the first one (min to max); memory: peak resident of the process, in MB\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        parts: list[tuple[str, Case, tuple[str, ...]]] = [("in memory", CASES[name], IN_MEMORY) for name in args.cases.split(",")]
        if "loaders" not in args.without:
            from benchmarks.loader import make_shards

            make_shards(shards, 256)
            parts += [("with each side's own loader, 256 px JPEG", CASES[name], LOADERS) for name in args.cases.split(",")]
        if "cache" not in args.without:
            parts.append(("gradient cache", CASES["small"]._replace(batch=256), CACHE))
        for how, case, sides in parts:
            lines = measure(case, sides, shards, args.rounds, args.steps)
            text += f"\n{case.what}, batch {case.batch}, precision {case.precision}, {how}\n" + "\n".join(lines) + "\n"
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(text)  # what is measured is kept, also when a later part is broken off
    print(text)


if __name__ == "__main__":
    main()
