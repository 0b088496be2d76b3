"""The table at the end of `make demo`: what the records beside the outputs say, in columns with names."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.choices import MODELS
from vlm_core.stage import Report, record_of

TRAINED = {  # column -> metric of a training's report
    "training pairs/s": "pairs_per_s", "final loss": "final_loss", "held-out AUC": "quick.auc", "held-out text R@10": "quick.text_recall_at_10",
    "held-out image R@10": "quick.image_recall_at_10",
}  # fmt: skip


def table(data: Path) -> str:
    """What came out, from the records beside the outputs in the folder `data`."""
    return "\n".join([f"\n{'=' * 100}", *_data(data), *_models(data), *_transfers(data), *_registry(data)])


def read_report(data: Path, *asset: str) -> Report | None:
    path = record_of(data.joinpath(*asset)) / "result.json"
    return Report.model_validate_json(path.read_text()) if path.exists() else None


def _data(data: Path) -> Iterator[str]:
    found = {name: read_report(data, name) for name in ("candidate_pairs", "filtered", "shards")}
    for name, said in found.items():
        if said is not None:
            whole = ", ".join(f"{key} {value:,}" for key, value in said.counts.items() if "." not in key)
            yield f"{name:25} {whole}"
            reasons = sorted(((key, value) for key, value in said.counts.items() if "." in key), key=lambda pair: -pair[1])
            for start in range(0, len(reasons), 5):
                yield " " * 26 + ", ".join(f"{key} {value:,}" for key, value in reasons[start : start + 5])
    if found["shards"] is not None:
        yield f"snapshot                  {found['shards'].data_version}"


def _models(data: Path) -> Iterator[str]:
    reports = {f"pretrained/{recipe}": (read_report(data, "pretrained", recipe), "") for recipe in MODELS}
    distilled = read_report(data, "distilled")
    reports |= {f"distilled/{name}": (distilled, f"{name}.") for name in ("student", "twin")}
    rows = {name: _row(report.metrics, prefix) for name, (report, prefix) in reports.items() if report is not None}
    if rows:
        yield f"{'trained':25} " + "".join(f"{title:>22}" for title in TRAINED)
        yield from (f"{name:25} {row}" for name, row in rows.items() if row.strip(" -"))
    for file in sorted((data / "evaluation").glob("*/metrics.parquet")):
        yield f"evaluation of {file.parent.name}"
        yield from _intervals(file)
    yield from _twins(data)


def _row(metrics: Mapping[str, float], prefix: str) -> str:
    return "".join(f"{metrics[prefix + key]:>22,.3f}" if prefix + key in metrics else f"{'-':>22}" for key in TRAINED.values())


def _twins(data: Path) -> Iterator[str]:
    """What the teacher was worth: paired differences, student minus twin."""
    student, twin = (data / "evaluation" / name for name in ("student", "twin"))
    if student.exists() and twin.exists():
        from vlm_core.evaluate.compare import compare

        yield "student minus its twin without a teacher"
        for row in (row for row in compare(twin, student, 1000) if row.suite.startswith("heldout/") or row.suite.endswith("zero_shot_ensemble/acc1")):
            yield f"    {row.suite.replace('/', ' '):50} {row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]  n {row.n:,}"


def _intervals(path: Path) -> Iterator[str]:
    for row in pq.read_table(path).to_pylist():
        if row.get("seed") is None and (row["dataset"] == "heldout" or (row["metric"] == "acc1" and row["task"] != "zero_shot_single")):
            yield f"    {row['dataset'] + ' ' + row['task'] + ' ' + row['metric']:50} {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]  n {row['n']:,}"


def _transfers(data: Path) -> Iterator[str]:
    for record in sorted((data / "transferred").glob("*/*.run/result.json")):
        said = Report.model_validate_json(record.read_text()).metrics
        shots = sorted(int(found[1]) for name in said if (found := re.fullmatch(r"acc1/(\d+)_shots", name)))
        words = [f"{n} shots {said[f'acc1/{n}_shots']:.3f}" for n in shots] + [f"text alone {said['acc1/zero_shot_text']:.3f}"]
        yield f"{record.parent.parent.name + ' on ' + record.parent.name.removesuffix('.run'):40} accuracy: {', '.join(words)}"


def _registry(data: Path) -> Iterator[str]:
    for recipe in [*MODELS, "student"]:
        said = read_report(data, "registry", recipe)
        for row in said.tables.get("registry", []) if said else []:
            yield f"{row['name']:25} version {row['version']} ({recipe}) {row['aliases'] or 'no alias'}: {row['reason']}"
