"""`vlm transfer`: one method on one labelled set, over shots and seeds, measured on a test split that fitting never holds.

OUT/predictions.parquet, metrics.parquet, cards/   per-sample results of every (shots, seed) and what follows from them
OUT/adapted/<shots>-<seed>.safetensors             the method's own tensors; adapted/method.json says to which model they belong
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm_core.config import build
from vlm_core.data.eval_sets.few_shot import fewshot_indices
from vlm_core.errors import CheckpointError, DataError
from vlm_core.evaluate.card import ProtocolCard, digest_of
from vlm_core.evaluate.metrics import topk_correct
from vlm_core.evaluate.results import Results
from vlm_core.evaluate.statistics import Interval, bootstrap_mean, seed_statistics
from vlm_core.models.feature_store import Labelled, Stored
from vlm_core.stage import Report, Stage, write_json
from vlm_core.train.adapt import adapt
from vlm_core.train.config import Transfer
from vlm_core.train.curve import draw_curve
from vlm_core.transfer.base import Support, TextTower, Tokenize, TransferMethod


def transfer(config: Transfer, stage: Stage) -> Report:
    """Adapt, predict, measure."""
    stored = Stored(stage.input("features") / config.dataset)
    model = _check_model(stage.input("model"), stored)
    tower = _text_tower(stage.input("model")) if config.method.reads_text_tower else None
    name = stage.recipe or config.method.kind
    results = Results(model, name, config.resamples)
    test = stored.split("test")  # the only place where it is opened; from here it goes to `_measure` and nowhere else
    zero_shot = config.method.kind == "zero_shot"
    drawn: list[dict[str, Any]] = []
    for shots in [0] if zero_shot else config.shots:
        seeds = [0] if zero_shot else config.seeds[:1] if shots == 0 else config.seeds
        card = _card(config, stored, test, shots, seeds, zero_shot)
        correct = []
        for seed in seeds:
            support, row = draw_support(config, stored, tower, shots, seed)
            method = adapt(build(config.method, support=support), support, shots)
            _keep(method, stage.out / "adapted", f"{shots}-{seed}")
            correct.append(_measure(method, test, stored, card, results, shots, seed))
            drawn.append({"shots": shots, "seed": seed, **row, "acc1": float(correct[-1].mean())})
            stage.tracker.metrics({f"acc1/seed_{seed}": drawn[-1]["acc1"]}, step=shots)
            stage.progress(f"{name} on {config.dataset}, {shots} shots, seed {seed}: accuracy {drawn[-1]['acc1']:.3f}", len(drawn))
        _summarise(results, card, np.array(correct), test, shots)
    write_json(
        stage.out / "adapted" / "method.json",
        {"method": config.method.model_dump(mode="json"), **{k: stored.about[k] for k in ("model", "classnames", "templates", "key")}},
    )
    return _report(config, stage, stored, test, results, drawn)


def _check_model(folder: Path, stored: Stored) -> str:
    """Digest of the model, which must be the one that made the features. Raises CheckpointError."""
    settings = folder / "config.json"
    digest = str(json.loads(settings.read_text())["weights_sha256"]) if settings.exists() else "without config.json"
    if stored.about["model"] != digest:
        raise CheckpointError(
            f"Found features of the model {stored.about['model'][:12]} with the model {digest[:12]}, expected one and the same; run 'vlm features' with this model."
        )
    return digest


def _text_tower(folder: Path) -> tuple[TextTower, Tokenize]:
    """The frozen text tower and its tokenizer; only methods that learn through it pay for loading a model."""
    from vlm_core.models.pretrained import load

    vlm = load(folder)
    return cast(TextTower, vlm.towers.text.requires_grad_(False)), vlm.tokenize


def draw_support(config: Transfer, stored: Stored, tower: tuple[TextTower, Tokenize] | None, shots: int, seed: int) -> tuple[Support, dict[str, Any]]:
    """The few shots of one seed and what was really drawn: a class with fewer pictures gives all it has."""
    train, val = stored.train, stored.val
    if shots == 0:
        chosen, held = np.arange(len(train.keys)), np.arange(len(val.keys))
    else:
        chosen, held = fewshot_indices(train.labels_N.tolist(), shots, seed, val.labels_N.tolist())
    labels_N = train.labels_N[chosen]
    counts = torch.bincount(labels_N, minlength=len(stored.about["classnames"]))
    if int(counts.min()) == 0:
        lacking = [stored.about["classnames"][c] for c in (counts == 0).nonzero().flatten().tolist()]
        raise DataError(
            f"Found no training picture of {', '.join(lacking[:3])} in {config.dataset}, expected at least one per class; take another labelled set."
        )
    support = Support(
        stored.views_VND[:, chosen], labels_N, val.image_ND[held], val.labels_N[held], stored.single_CD, stored.ensemble_CD, stored.about["classnames"],
        stored.about["templates"][0], stored.about["scale"], seed=seed,
    )  # fmt: skip
    if tower is not None:
        support = replace(support, tower=tower[0], tokenize=tower[1])
    return support, {"drawn": len(chosen), "fewest_per_class": int(counts.min()), "most_per_class": int(counts.max()), "validation": len(held)}


def _measure(method: TransferMethod, test: Labelled, stored: Stored, card: ProtocolCard, results: Results, shots: int, seed: int) -> Any:
    """(N,) 1 where the test picture was classified right; stored sample by sample."""
    with torch.no_grad():
        logits_NC: Tensor = method.logits(test.image_ND)
    labels, names = test.labels_N.numpy(), stored.about["classnames"]
    correct = topk_correct(logits_NC.numpy(), labels).astype(float)
    best = logits_NC.argmax(dim=1)
    results.per_sample(
        card, "acc1", test.keys, correct, label=[names[c] for c in labels], prediction=[names[c] for c in best.tolist()],
        score=logits_NC.softmax(dim=1).max(dim=1).values.numpy(), group=test.groups, seed=seed, shots=shots, clustered=True,
    )  # fmt: skip
    return correct


def _summarise(results: Results, card: ProtocolCard, correct_SN: Any, test: Labelled, shots: int) -> None:
    """The mean over seeds with two intervals: between test pictures (bootstrap), and between seeds (Student's t)."""
    mean_N, seeds = correct_SN.mean(axis=0), seed_statistics(correct_SN.mean(axis=1))
    interval = bootstrap_mean(mean_N, results.resamples, results.seed, np.asarray(test.groups))
    between = (seeds.mean - seeds.t95, seeds.mean + seeds.t95) if len(correct_SN) > 1 else None
    results.whole(card, "acc1", interval, len(mean_N), shots=shots, seed_interval=between)


def _card(config: Transfer, stored: Stored, test: Labelled, shots: int, seeds: list[int], zero_shot: bool) -> ProtocolCard:
    about = stored.about
    return ProtocolCard.from_config(
        about["model_card"],
        {"dataset": about["name"], "dataset_version": about["dataset_version"], "split": "test", "split_sha256": digest_of(test.keys), "n": len(test.keys)},
        {"classes_sha256": digest_of(about["classnames"]), "class_count": len(about["classnames"]), "language": "en"},
        {"templates_sha256": digest_of(about["templates"]), "template_count": len(about["templates"])},
        {"task": "zero_shot" if zero_shot else f"{shots}_shot" if shots else "all_shots", "metrics": {"acc1": "top-1, a tie is wrong"}},
        {} if zero_shot else {"shots": shots, "seeds": seeds},
    )


def _keep(method: TransferMethod, folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in method.state_dict().items()}, folder / f"{name}.safetensors")


def _report(config: Transfer, stage: Stage, stored: Stored, test: Labelled, results: Results, drawn: list[dict[str, Any]]) -> Report:
    results.write(stage.out)
    zero_shot = _zero_shot_accuracy(stored, test)
    means = [row for row in results.metrics if row["seed"] is None]
    draw_curve(stage.pictures / "curve.png", f"{results.method} on {config.dataset}", means, zero_shot.value)
    table = pa.Table.from_pylist([{"model_id": row["model"], **{k: v for k, v in row.items() if k != "model"}} for row in results.metrics])
    return Report(
        counts={"test": len(test.keys), "classes": len(stored.about["classnames"]), "runs": len(drawn)},
        metrics={**{f"acc1/{row['shots']}_shots": row["value"] for row in means}, "acc1/zero_shot_text": zero_shot.value},
        tables={
            "accuracy": [
                {k: row[k] for k in ("method", "dataset", "shots", "value", "ci_low", "ci_high", "seed_ci_low", "seed_ci_high", "n")} for row in means
            ],
            "draws": drawn,
        },
        pictures={"Accuracy over shots": "curve.png"},
        catalog={"metrics": table},
    )


def _zero_shot_accuracy(stored: Stored, test: Labelled) -> Interval:
    logits_NC = torch.nn.functional.normalize(test.image_ND, dim=-1) @ stored.single_CD.T
    return bootstrap_mean(topk_correct(logits_NC.numpy(), test.labels_N.numpy()).astype(float), 1_000, clusters_N=np.asarray(test.groups))
