"""What the recipes learn from the demo's shards: three seeds, intervals, held-out groups.

    make demo && python benchmarks/quality.py [--seeds 3] [--data data] [--out data/quality]

Per recipe and metric: value and 95 % interval over held-out samples for each seed, then mean and Student-t interval over seeds.
The student is compared with its twin sample by sample. Finished parts are reused, so a stopped run goes on.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vlm_core.evaluate.compare import compare
from vlm_core.evaluate.statistics import seed_statistics
from vlm_core.run import load, run
from vlm_core.switches import switch_off

RESULT = Path(__file__).parent / "results" / "quality.txt"
SHOWN = (
    "heldout/matching/auc",
    "heldout/retrieval/text_retrieval_recall_at_10",
    "heldout/retrieval/image_retrieval_recall_at_10",
    "clipart_folders/zero_shot_ensemble/acc1",
)
PAIRED = ("heldout/matching/auc", "heldout/retrieval/image_retrieval_recall_at_10", "heldout/retrieval/text_retrieval_recall_at_10")


def evaluated(model: Path, data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Suite -> its row, measured by the one evaluator."""
    _, config = load("evaluate", changes=("datasets=[clipart_folders]", "probe=false"))
    run("evaluate", config, {"model": model, "shards": data / "shards", "eval_sets": data / "eval_sets"}, out)
    return {f"{row['dataset']}/{row['task']}/{row['metric']}": row for row in pq.read_table(out / "metrics.parquet").to_pylist()}


def chance_at_10(model_run: dict[str, float]) -> str:
    return f"text {model_run['quick.text_chance_at_10']:.3f}, image {model_run['quick.image_chance_at_10']:.3f}"


def pretrained(recipe: str, seeds: int, data: Path, out: Path) -> Iterator[str]:
    found, chance = [], ""
    for seed in range(seeds):
        _, config = load("pretrain", recipe, None, (f"seed={seed}",))
        report = run("pretrain", config, {"shards": data / "shards"}, out / f"{recipe}-{seed}", recipe=recipe)
        chance = chance_at_10(report.metrics)
        found.append(evaluated(out / f"{recipe}-{seed}", data, out / f"{recipe}-{seed}-evaluation"))
    yield f"\n{recipe} (chance of R@10: {chance})"
    yield from rows(found)


def distilled(seeds: int, data: Path, out: Path) -> Iterator[str]:
    found: dict[str, list[dict[str, dict[str, Any]]]] = {"student": [], "twin": []}
    pairs = []
    for seed in range(seeds):
        _, config = load("distil", "clip_kd_tiny", None, (f"student.seed={seed}",))
        run("distil", config, {"shards": data / "shards", "teacher": out / "lit_packaged-0"}, out / f"distilled-{seed}", recipe="clip_kd_tiny")
        for name, kept in found.items():
            kept.append(evaluated(out / f"distilled-{seed}" / name, data, out / f"distilled-{seed}-{name}-evaluation"))
        pairs.append({row.suite: row for row in compare(out / f"distilled-{seed}-twin-evaluation", out / f"distilled-{seed}-student-evaluation")})
    for name, kept in found.items():
        yield f"\n{'student, taught by lit_packaged-0' if name == 'student' else 'twin: the same student without a teacher'}"
        yield from rows(kept)
    yield "\nstudent - twin, paired by sample (95 % interval over groups of samples); last: mean over seeds"
    for suite in PAIRED:
        cells = "  ".join(f"{pair[suite].difference:+.3f} [{pair[suite].ci_low:+.3f}, {pair[suite].ci_high:+.3f}]" for pair in pairs)
        yield f"  {suite:52} {cells}  {over_seeds([pair[suite].difference for pair in pairs])}"


def rows(found: list[dict[str, dict[str, Any]]]) -> Iterator[str]:
    for suite in SHOWN:
        cells = "  ".join(f"{seed[suite]['value']:.3f} [{seed[suite]['ci_low']:.3f}, {seed[suite]['ci_high']:.3f}]" for seed in found)
        yield f"  {suite:52} {cells}  {over_seeds([seed[suite]['value'] for seed in found])}  n={found[0][suite]['n']}"


def over_seeds(values: list[float]) -> str:
    stats = seed_statistics(np.array(values))
    return f"mean {stats.mean:+.3f} ± {stats.t95:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("data/quality"))
    args = parser.parse_args()
    switch_off()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    lines = [
        f"# benchmarks/quality.py --seeds {args.seeds}, on the shards of `make demo`; Python {platform.python_version()}, {platform.machine()}, no GPU",
        "# each seed: value [95 % interval over held-out groups]; last: mean over seeds ± half of Student's t interval",
    ]
    for part in (
        pretrained("lit_packaged", args.seeds, args.data, args.out),
        pretrained("clip_tiny", args.seeds, args.data, args.out),
        distilled(args.seeds, args.data, args.out),
    ):
        for line in part:
            print(line, flush=True)
            lines.append(line)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join(lines) + "\n")
    print(f"{(time.monotonic() - began) / 60:.1f} min")


if __name__ == "__main__":
    main()
