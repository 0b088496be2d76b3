"""What the recipes learn from the demo's shards: three seeds, intervals, held-out groups.

    make demo && python benchmarks/quality.py [--seeds 3] [--data data] [--out data/quality]

Per recipe and metric: value and 95 % interval over held-out samples for each seed, then mean and Student-t interval over seeds.
The student is compared with its twin sample by sample, and lit_packaged with the offline scorer. Finished parts are reused, so a stopped run goes on.

The scorer that lies in the embeddings was fitted on pairs of the whole crawl, held-out ones among them. So that both know the same, the one that is
compared has its heads fitted anew, on those of its pairs that are training pairs of the snapshot; both encode the same pictures and texts.
"""

import argparse
import io
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from vlm_core.data.config import Embed, OfflineScorer
from vlm_core.data.shards.shards import read_samples
from vlm_core.evaluate.compare import Suite, compare, read_suites
from vlm_core.evaluate.heldout import read_heldout
from vlm_core.evaluate.matching import placements
from vlm_core.evaluate.statistics import Interval, bootstrap_mean, seed_statistics
from vlm_core.models.scorer import Offline, fit_heads, sentences
from vlm_core.run import load, run
from vlm_core.switches import switch_off

RESULT = Path(__file__).parent / "results" / "quality.txt"
AUC = "heldout/matching/auc"
SHOWN = (
    AUC,
    "heldout/retrieval/text_retrieval_recall_at_10",
    "heldout/retrieval/image_retrieval_recall_at_10",
    "clipart_folders/zero_shot_ensemble/acc1",
)
PAIRED = (AUC, "heldout/retrieval/image_retrieval_recall_at_10", "heldout/retrieval/text_retrieval_recall_at_10")


def evaluated(model: Path, data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Suite -> its row, measured by the one evaluator."""
    _, config = load("evaluate", changes=("datasets=[clipart_folders]", "probe=false"))
    run("evaluate", config, {"model": model, "shards": data / "shards", "eval_sets": data / "eval_sets"}, out)
    return {f"{row['dataset']}/{row['task']}/{row['metric']}": row for row in pq.read_table(out / "metrics.parquet").to_pylist()}


def chance_at_10(model_run: dict[str, float]) -> str:
    return f"text {model_run['quick.text_chance_at_10']:.3f}, image {model_run['quick.image_chance_at_10']:.3f}"


def offline_scorer() -> OfflineScorer:
    """The scorer of the demo."""
    settings = load("embed", "offline_embed")[1]
    assert isinstance(settings, Embed)
    assert isinstance(settings.scorer, OfflineScorer)
    return settings.scorer


def pretrained(recipe: str, seeds: int, data: Path, out: Path) -> Iterator[str]:
    found, chance = [], ""
    for seed in range(seeds):
        _, config = load("pretrain", recipe, None, (f"seed={seed}",))
        report = run("pretrain", config, {"shards": data / "shards"}, out / f"{recipe}-{seed}", recipe=recipe)
        chance = chance_at_10(report.metrics)
        found.append(evaluated(out / f"{recipe}-{seed}", data, out / f"{recipe}-{seed}-evaluation"))
    yield f"\n{recipe} (chance of R@10: {chance})"
    yield from rows(found)


def scored(seeds: int, data: Path, out: Path, settings: OfflineScorer) -> Iterator[str]:
    """The offline scorer on the held-out pairs, and what lit_packaged of the same seed gains over it on each of them."""
    own, differences = [], []
    scorer = Offline(settings.size_px, settings.names, settings.precision)
    features_NE, text_NE = known_to_both(scorer, data)
    for seed in range(seeds):
        share = shares(scorer.with_heads(fit_heads(features_NE, text_NE, seed, settings.fit_epochs)), data)
        lit = auc_of(out / f"lit_packaged-{seed}-evaluation")
        assert share.keys() == lit.value.keys()
        groups = np.array([lit.group[uid] for uid in share])
        own.append(bootstrap_mean(np.array(list(share.values())), clusters_N=groups))
        differences.append(bootstrap_mean(np.array([lit.value[uid] - theirs for uid, theirs in share.items()]), clusters_N=groups))
    yield f"\nthe offline scorer, its heads fitted on {len(text_NE):,} training pairs of the hosts that it trusts"
    yield from rows([{AUC: {"value": one.value, "ci_low": one.low, "ci_high": one.high, "n": len(share)}} for one in own], (AUC,))
    yield "\nlit_packaged - offline scorer, paired by sample (95 % interval over groups of samples); last: mean over seeds"
    yield gains(AUC, differences)


def auc_of(evaluation: Path) -> Suite:
    return read_suites(evaluation)["heldout", "matching", "auc"]


def known_to_both(scorer: Offline, data: Path) -> tuple[Tensor, Tensor]:
    """What the towers say of the pictures (N, 1280) and captions (N, 384) that fitted the scorer in `vlm embed` and are in the training split."""
    metadata = pq.read_table(data / "embeddings" / "metadata" / "metadata_0.parquet", columns=["uid", "fitted"])
    fitted = set(metadata.filter(metadata["fitted"])["uid"].to_pylist())
    samples = [sample for sample in read_samples(data / "shards", "train") if sample.uid in fitted]
    features_NE, _ = scorer.trunk([Image.open(io.BytesIO(sample.jpeg)).convert("RGB") for sample in samples])
    text_NE = torch.from_numpy(sentences()([sample.record["caption"] for sample in samples]).numpy())  # a copy that may take part in a fit
    return features_NE, text_NE


def shares(scorer: Offline, data: Path) -> dict[str, float]:
    """Held-out pair -> share of the non-matching cells that the scorer puts below it; their mean is the ROC AUC."""
    heldout = read_heldout(data / "shards")
    image_ID, text_TD = scorer.encode_images(list(heldout.pictures(list(range(len(heldout.sha256s)))))), scorer.encode_texts(heldout.texts)
    return dict(zip(heldout.uids, placements(image_ID, text_TD, heldout.image_index, heldout.text_index).tolist(), strict=True))


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
        yield gains(suite, [Interval(pair[suite].difference, pair[suite].ci_low, pair[suite].ci_high) for pair in pairs])


def gains(suite: str, found: list[Interval]) -> str:
    cells = "  ".join(f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in found)
    return f"  {suite:52} {cells}  {over_seeds([one.value for one in found])}"


def rows(found: list[dict[str, dict[str, Any]]], shown: tuple[str, ...] = SHOWN) -> Iterator[str]:
    for suite in shown:
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
        scored(args.seeds, args.data, args.out, offline_scorer()),
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
