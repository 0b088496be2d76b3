"""Every loss over all pairs of a batch, as a whole and in chunks: time and extra peak memory of forward and backward.

    python benchmarks/contrastive_loss.py [--rows 8192] [--width 512] [--chunk 128] [--rounds 1] [--only NAME]

Each measurement is a process of its own that makes unit-norm embeddings in float32, notes its resident memory, and runs one loss with its gradient;
extra memory is the peak above that, with an allocator that gives freed blocks of 1 MB back at once, so that it is what the loss holds. Time is CPU time of one thread (the median of the rounds), so a busy machine changes it little.
The token-wise loss has two tokens a side, of half the width, and half the chunk.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "contrastive_loss.txt"
NAMES = (
    "clip", "align (label smoothing)", "siglip", "soft targets (PyramidCLIP)", "labels (UniCL)", "mixup (ZeroVL)", "two views (SimCLR)", "neighbours (DeCLIP)",
    "tokens (FILIP)", "transport (OTTER)", "two captions (ALIP)", "noise (NLIP)", "queue (FIBER)",
)  # fmt: skip


def losses(rows: int, width: int) -> dict[str, Callable[[int], object]]:
    """Name -> function of the chunk size that gives a scalar with a gradient to images and texts."""
    import torch

    from vlm_core.objectives import contrast, mixup, nearest_neighbour, optimal_transport, token_wise, weighted_captions
    from vlm_core.objectives.gather import Pairs
    from vlm_core.objectives.image_contrastive import nt_xent
    from vlm_core.objectives.image_text_label import unicl_loss
    from vlm_core.objectives.noise_adaptive import adaptive_soft_infonce
    from vlm_core.objectives.queued_contrastive import itc_queue_loss
    from vlm_core.objectives.sigmoid import siglip_loss

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    image, text, one, two = (torch.nn.functional.normalize(torch.randn(rows, width, generator=random), dim=-1) for _ in range(4))
    image.requires_grad_()
    text.requires_grad_()
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    pairs, labels, taught = Pairs(image, text, image, text, 0), torch.arange(rows) // 2, optimal_transport.Taught(one, two)
    tokens = image.unflatten(1, (2, -1)), text.unflatten(1, (2, -1))  # twice the rows at half the width: the same embeddings
    weight, queued = torch.ones(rows), [side[: rows // 2] for side in (one, two)]  # FIBER's 4,096 beside 8,192
    return {
        "clip": lambda chunk: contrast.both_ways(pairs, scale, chunk_size=chunk),
        "align (label smoothing)": lambda chunk: contrast.both_ways(pairs, scale, chunk_size=chunk, label_smoothing=0.1),
        "siglip": lambda chunk: siglip_loss(image, text, scale, bias, chunk_size=chunk),
        "soft targets (PyramidCLIP)": lambda chunk: contrast.softened(pairs, scale, 0.2, chunk_size=chunk),
        "labels (UniCL)": lambda chunk: unicl_loss(pairs, scale, labels, labels, chunk_size=chunk),
        "mixup (ZeroVL)": lambda chunk: mixup.mixup_infonce(pairs, 0.7, scale, chunk_size=chunk),
        "two views (SimCLR)": lambda chunk: nt_xent(pairs, 0.1, chunk),
        "neighbours (DeCLIP)": lambda chunk: nearest_neighbour.nn_supervision_loss((image, text), (one, two), scale, chunk_size=chunk),
        "tokens (FILIP)": lambda chunk: token_wise.filip_loss(*tokens, scale, chunk_size=chunk // 2),
        "transport (OTTER)": lambda chunk: torch.stack(optimal_transport.otter_loss(pairs, taught, scale, scale, chunk_size=chunk)).sum(),
        "two captions (ALIP)": lambda chunk: weighted_captions.weighted_clip_loss(image, text, scale, weight, weight, chunk_size=chunk),
        "noise (NLIP)": lambda chunk: adaptive_soft_infonce(image, text, scale, 0.3 * weight, chunk_size=chunk),
        "queue (FIBER)": lambda chunk: itc_queue_loss(image, text, *queued, scale, chunk_size=chunk),
    }


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(name: str, rows: int, width: int, chunk: int) -> None:
    """In a process of its own: prints CPU seconds, extra bytes and the loss."""
    import torch

    given = losses(rows, width)[name]
    for size in (0, 4):  # libraries are loaded, checkpointing too
        losses(8, width)[name](size).backward()  # type: ignore[attr-defined]
    before, peak, running = resident(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, resident())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.process_time()
    loss = given(chunk)
    loss.backward()  # type: ignore[attr-defined]
    seconds, running = time.process_time() - begin, False
    watcher.join()
    assert isinstance(loss, torch.Tensor)
    print(seconds, peak - before, float(loss.detach()))


def asked(name: str, rows: int, width: int, chunk: int) -> tuple[float, float, float]:
    words = [sys.executable, __file__, "--rows", str(rows), "--width", str(width), "--chunk", str(chunk), "--only", name, "--measure"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    out = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    seconds, extra, loss = (float(word) for word in out.split())
    return seconds, extra, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("rows", 8192), ("width", 512), ("chunk", 128), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="", help="one of: " + "; ".join(NAMES))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.only, args.rows, args.width, args.chunk)
        return
    import torch

    lines = [
        f"# benchmarks/contrastive_loss.py --rows {args.rows} --width {args.width} --chunk {args.chunk} --rounds {args.rounds}",
        f"# Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 thread, float32, forward and backward",
        "# CPU seconds: median of the rounds, whole and chunked taking turns; extra: peak resident memory above that before the loss, highest of the rounds;",
        "# freed blocks of 1 MB and more go back to the system at once (MALLOC_MMAP_THRESHOLD_)",
        "", f"{'loss':28}{'whole s':>9}{'chunked s':>11}{'ratio':>7}{'whole MB':>10}{'chunked MB':>12}{'difference':>12}",
    ]  # fmt: skip
    for name in filter(lambda name: args.only in ("", name), NAMES):
        rounds = [[asked(name, args.rows, args.width, chunk) for chunk in (0, args.chunk)] for _ in range(args.rounds)]
        whole, parts = (statistics.median(turn[side][0] for turn in rounds) for side in (0, 1))
        extra = [max(turn[side][1] for turn in rounds) / 1e6 for side in (0, 1)]
        apart = abs(rounds[0][0][2] - rounds[0][1][2]) / abs(rounds[0][0][2])
        lines.append(f"{name:28}{whole:9.2f}{parts:11.2f}{parts / whole:7.2f}{extra[0]:10.0f}{extra[1]:12.0f}{apart:12.1e}")
        print(lines[-1], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
