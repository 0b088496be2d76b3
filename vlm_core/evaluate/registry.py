"""Models in the registry: every model becomes a version and the challenger, and champion only through the gate (PLATFORM 9).

A version is one LoggedModel: the model's folder (safetensors, config.json, card) and, below `evaluation/`, the per-sample
results it was measured with. A later challenger is paired with those stored results; only when the test data have changed
since (another protocol card) the champion is measured again, on the challenger's. Models that read pictures or texts in
another way never share a card, so each kind of model has a registered name of its own.
"""

import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.lineage.takedown import behind
from vlm_core.errors import ConfigError, MissingInput
from vlm_core.evaluate.config import Evaluate, Promote
from vlm_core.evaluate.gate import Verdict, gate
from vlm_core.stage import Report, Stage, data_version, file_sha256, git_revision, home, record_of, write_json
from vlm_core.track import MlflowTracker, NullTracker, Registered, Registry

DECISION = {"promote": "promoted", "keep": "kept the champion", "cannot_tell": "cannot tell", "refused": "refused"}


def promote(config: Promote, stage: Stage) -> Report:
    """Register `model`, make it challenger, and champion if the gate says so. The same bytes are registered once."""
    model, evaluation = stage.input("model"), stage.input("evaluation")
    said = _config_of(model)
    weights = _sha256(model / "model.safetensors")
    registry = Registry(_tracking_uri())
    version = next((v for v in registry.versions(config.name) if v.weights == weights and v.tags.get("evaluation") == data_version(evaluation)), None)
    is_new = version is None
    if version is None:
        version = _register(registry, config.name, model, evaluation, weights, said, stage)
    champion = registry.holder(config.name, "champion")
    registry.point("challenger", version)
    rows = [_row(version, "challenger", "registered" if is_new else "known already", "")]
    if champion is not None and champion.version == version.version:
        verdict = Verdict("keep", "This version is the champion already.", [])
    else:
        verdict = _without_takedowns(config, weights, lambda: _judge(config, stage, registry, evaluation, champion))
        rows += _move(registry, version, champion, verdict)
    worse = [row.suite for row in verdict.rows if row.ci_high < 0]
    # No versions or times here: those are the registry's, and an output folder holds only what the same inputs always give.
    write_json(stage.out / "verdict.json", {"name": config.name, "weights_sha256": weights, "outcome": verdict.outcome, "reason": verdict.reason})
    holder = registry.holder(config.name, "champion")
    return Report(
        counts={"version": version.version, "new": int(is_new), "worse": len(worse), "promoted": int(verdict.promotes)},
        tables={
            "registry": [{"name": config.name, "version": version.version, "aliases": ", ".join(_aliases(registry, version)), "champion": holder.version if holder else None,
                          "outcome": verdict.outcome, "reason": verdict.reason, "weights": weights[:12], "snapshot": said.get("snapshot_md5", "")}],
            "challenger - champion": [row._asdict() for row in verdict.rows],
        },
        catalog={"promotions": pa.Table.from_pylist(rows)},
    )  # fmt: skip


def rollback(name: str) -> str:
    """Point `champion` back to the version before it; a second call changes nothing."""
    registry = Registry(_tracking_uri())
    champion, before = registry.holder(name, "champion"), registry.holder(name, "previous")
    if before is None:
        raise ConfigError(f"Found no alias 'previous' of {name!r} in the registry, expected one; there was no promotion to take back.")
    if champion is not None and champion.version == before.version:
        return f"{name}: version {before.version} is the champion already"
    registry.point("champion", before)
    from vlm_core.data.lineage.catalog import append

    run_id = f"rollback-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    append(home() / "catalog", "promotions", pa.Table.from_pylist([_row(before, "champion", "rolled back", "asked for by a person")]), run_id)
    return f"{name}: version {before.version} is champion again (was {champion.version if champion else 'none'})"


def main(argv: list[str]) -> int:
    """`vlm rollback NAME`."""
    if len(argv) != 1:
        raise ConfigError(f"Found {len(argv)} words after 'vlm rollback', expected the name of a registered model, such as vlm-base.")
    print(rollback(argv[0]))
    return 0


def _judge(config: Promote, stage: Stage, registry: Registry, evaluation: Path, champion: Registered | None) -> Verdict:
    rule: dict[str, Any] = {"primary": config.primary, "margin": config.margin, "resamples": config.resamples, "seed": config.seed}
    if champion is None:
        return gate(evaluation, None, **rule)
    if "champion_evaluation" in stage.inputs:
        return gate(evaluation, stage.input("champion_evaluation"), **rule)
    with tempfile.TemporaryDirectory() as tmp:
        folder = registry.fetch(champion, Path(tmp) / "champion")
        if not (folder / "evaluation").is_dir():
            raise MissingInput(
                f"Found no evaluation stored with version {champion.version} of {config.name!r}, expected its per-sample results; evaluate that model and give --in champion_evaluation=PATH."
            )
        verdict = gate(evaluation, folder / "evaluation", **rule)
        if verdict.outcome == "refused" and {"shards", "eval_sets"} <= set(stage.inputs):
            stage.progress(f"measuring the champion, version {champion.version}, on the present test data")
            verdict = gate(evaluation, _measured_again(stage, folder, evaluation, Path(tmp)), **rule)
        return verdict


def _without_takedowns(config: Promote, weights: str, judge: Callable[[], Verdict]) -> Verdict:
    """The gate's verdict, unless the model stands on what was taken down, itself or through another model: that is refused, or said beside the verdict."""
    held = behind(home(), weights)
    if not held:
        return judge()
    ways = "; ".join(f"{row['samples']} samples of {row['kind']} {row['value']} ({row['how']}, takedown {row['takedown_id'][:12]})" for row in held[:5])
    if config.despite_takedowns:
        verdict = judge()
        return verdict._replace(reason=f"{verdict.reason} Despite takedowns, as asked: it stands on {ways}.")
    return Verdict(
        "refused",
        f"It stands on what was taken down: {ways}. Train it again on the present snapshot, withdraw the takedown, or set despite_takedowns=true.",
        [],
    )


def _measured_again(stage: Stage, champion: Path, evaluation: Path, tmp: Path) -> Path:
    """The champion under the protocol of the challenger: its stored results are of other test data or settings."""
    from vlm_core.evaluate.evaluate import evaluate

    spec = json.loads((record_of(evaluation) / "spec.json").read_text())
    inputs = {"model": champion, "shards": stage.input("shards"), "eval_sets": stage.input("eval_sets")}
    out, state, pictures = (tmp / name for name in ("out", "state", "pictures"))
    for folder in (out, state, pictures):
        folder.mkdir()
    stage = Stage("evaluate", inputs, out, state, pictures, NullTracker(), stage.run_id, stage.versions)
    evaluate(Evaluate.read(spec["config"]), stage)
    return out


def _move(registry: Registry, version: Registered, champion: Registered | None, verdict: Verdict) -> list[dict[str, Any]]:
    if not verdict.promotes:
        return [_row(version, "", DECISION[verdict.outcome], verdict.reason)]
    rows = []
    if champion is not None:
        registry.point("previous", champion)
        rows.append(_row(champion, "previous", "replaced", verdict.reason))
    registry.point("champion", version)
    return [*rows, _row(version, "champion", DECISION[verdict.outcome], verdict.reason)]


def _register(registry: Registry, name: str, model: Path, evaluation: Path, weights: str, said: dict[str, Any], stage: Stage) -> Registered:
    tags = {
        "weights_sha256": weights, "snapshot": str(said.get("snapshot_md5", "")), "recipe": str(said.get("recipe", "")), "evaluation": data_version(evaluation),
        "git.rev": git_revision(), "dagster/run_id": os.environ.get("VLM_DAGSTER_RUN", ""), "vlm.run_id": stage.run_id,
    }  # fmt: skip
    tracker = stage.tracker if isinstance(stage.tracker, MlflowTracker) else MlflowTracker(registry.uri, f"promote/{name}")
    params = {key: value for key, value in said.items() if isinstance(value, str | int | float | bool)}
    version = registry.register(name, {"": model, "evaluation": evaluation}, tags, params, tracker.run_id)
    tracker.model_metrics(version.model_id, _metrics(evaluation), dataset=("shards", str(said.get("snapshot_md5", ""))))
    if tracker is not stage.tracker:
        tracker.close()
    return version


def _metrics(evaluation: Path) -> dict[str, tuple[float, str]]:
    """dataset/task/metric -> (value, id of the protocol card)."""
    rows = pq.read_table(evaluation / "metrics.parquet").to_pylist()
    return {f"{row['dataset']}/{row['task']}/{row['metric']}": (float(row["value"]), str(row["card_id"])) for row in rows if row.get("seed") is None}


def _aliases(registry: Registry, version: Registered) -> list[str]:
    held = {alias: registry.holder(version.name, alias) for alias in ("champion", "challenger", "previous")}
    return [alias for alias, holder in held.items() if holder is not None and holder.version == version.version]


def _row(version: Registered, alias: str, decision: str, reason: str) -> dict[str, Any]:
    return {
        "model_id": version.weights,
        "name": version.name,
        "version": str(version.version),
        "alias": alias,
        "decision": decision,
        "reason": reason,
        "at": datetime.now(UTC),
    }


def _config_of(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    if not path.exists():
        raise MissingInput(f"Found no config.json in {model}, expected a model folder; give --in model=PATH of a trained model.")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _sha256(path: Path) -> str:
    if not path.exists():
        raise MissingInput(f"Found no {path}, expected the weights of a model; give --in model=PATH of a trained model.")
    return file_sha256(path)


def _tracking_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            "Found no MLFLOW_TRACKING_URI in the environment, expected the address of the model registry; start it with 'make up' and set the variable to what that prints."
        )
    return uri
