"""`vlm evaluate`: one evaluator for every model. Pictures and texts are encoded once; every number has an interval and the id of its protocol card.

OUT/predictions.parquet, metrics.parquet, cards/<id>.json   (see results.py)
OUT/report.md, model.json                                    for people; what was evaluated
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlm_core import stage as stages
from vlm_core.data.eval_sets.eval_sets import EvalSet, read_dataset
from vlm_core.data.shards.shards import read_manifest
from vlm_core.evaluate import metrics, probe
from vlm_core.evaluate.card import ProtocolCard, digest_of
from vlm_core.evaluate.config import Evaluate
from vlm_core.evaluate.grounding import ground_heldout
from vlm_core.evaluate.heldout import HeldOut, read_heldout
from vlm_core.evaluate.matching import placements
from vlm_core.evaluate.report import draw_metrics, markdown
from vlm_core.evaluate.results import Results, flat_metrics
from vlm_core.evaluate.retrieval import retrieval_ranks
from vlm_core.evaluate.segmentation import can_segment, evaluate_segmentation
from vlm_core.evaluate.statistics import Interval, bootstrap_metric
from vlm_core.models.captions import caption_log_likelihood
from vlm_core.models.features import Encoder, choose_datasets, encode_split, model_card_fields
from vlm_core.models.pretrained import Vlm, load
from vlm_core.models.prompts import fill
from vlm_core.stage import Report, Stage

GROUNDING, SEGMENTATION = "grounding.png", "segmentation.png"
DRAWN = {"Scenes: what is there (green), what was found (red)": GROUNDING, "Scenes, their classes, and those that patches were given": SEGMENTATION}
MEANS = {"single": "the first template", "ensemble": "unit mean of unit prompt embeddings"}


def evaluate(config: Evaluate, stage: Stage) -> Report:
    """Measure a model on the held-out pairs and on the labelled sets."""
    vlm = load(stage.input("model"))
    encoder, results = Encoder(vlm, config.batch), Results(vlm.digest, "", config.resamples, config.seed)
    if "features" in stage.inputs:
        encoder.recall(stage.input("features"))
    shards, sets = stage.input("shards"), stage.input("eval_sets")
    heldout = read_heldout(shards)
    stage.progress("held-out pairs", len(heldout.uids))
    _heldout(config, heldout, _heldout_version(shards), encoder, results)
    if vlm.towers.config.regions is not None:
        stage.progress("scenes of held-out pictures", config.scenes)
        ground_heldout(vlm, heldout, _heldout_version(shards), config.scenes, results, stage.pictures / GROUNDING)
    for name in choose_datasets(sets, config.datasets):
        dataset = read_dataset(sets / name)
        stage.progress(f"{name}: pictures", len(dataset))
        _labelled(config, dataset, stages.data_version(sets / name), encoder, results)
        if name == config.segmentation and can_segment(vlm):
            stage.progress(f"{name}: scenes to segment", config.scenes)
            evaluate_segmentation(encoder, dataset, stages.data_version(sets / name), config.scenes, results, stage.pictures / SEGMENTATION)
    return _report(stage, vlm, heldout, results)


def _heldout_version(shards: Path) -> str:
    """DVC hash of the held-out tars alone: more training data does not change what is measured."""
    return stages.dir_hash({entry["name"]: entry["md5"] for entry in read_manifest(shards)["shards"] if entry["split"] == "heldout"})


# ---------------------------------------------------------------- held-out pairs


def _heldout(config: Evaluate, data: HeldOut, version: str, encoder: Encoder, results: Results) -> None:
    image_ID = encoder.images(data.sha256s, data.pictures).numpy()
    text_TD = encoder.texts(data.texts).numpy()
    common = [
        model_card_fields(encoder.vlm),
        {"dataset": "heldout", "dataset_version": version, "split": "heldout", "split_sha256": digest_of(data.uids), "n": len(data.uids), "language": "all"},
    ]
    pairs = {"positives": "equal picture bytes, or equal normalised raw caption", "pictures": len(data.sha256s), "texts": len(data.texts), "ties": "wrong"}
    card = ProtocolCard.from_config(*common, {"task": "retrieval", "metrics": {"recall_at": sorted(config.recall_at), **pairs}})
    ranks = retrieval_ranks(image_ID, text_TD, data.image_index, data.text_index)
    for k in sorted(config.recall_at):
        for name, rank, ids, groups in (
            ("image_retrieval", ranks.of_images, data.text_uids, data.text_groups),
            ("text_retrieval", ranks.of_texts, data.sha256s, data.image_groups),
        ):
            results.per_sample(card, f"{name}_recall_at_{k}", ids, (rank <= k).astype(float), score=rank, group=groups, clustered=True)
    _mean_recall(card, results)
    card = ProtocolCard.from_config(*common, {"task": "matching", "metrics": {"auc": "matching pairs against all other picture-text cells", **pairs}})
    share = placements(image_ID, text_TD, data.image_index, data.text_index)
    results.per_sample(card, "auc", data.uids, share, group=[data.image_groups[i] for i in data.image_index], clustered=True)


def _mean_recall(card: ProtocolCard, results: Results) -> None:
    """Mean of the recalls both ways. The ends of its interval are the means of theirs: at least as wide as it should be."""
    rows = [row for row in results.metrics if row["card_id"] == card.id and "_recall_at_" in row["metric"]]
    value, low, high = (float(np.mean([row[name] for row in rows])) for name in ("value", "ci_low", "ci_high"))
    results.whole(card, "mean_recall", Interval(value, low, high), card.n)


# ---------------------------------------------------------------- labelled sets


def _labelled(config: Evaluate, data: EvalSet, version: str, encoder: Encoder, results: Results) -> None:
    test = data.rows("test")
    common = [
        model_card_fields(encoder.vlm),
        {"dataset": data.name, "dataset_version": version, "split": "test", "split_sha256": digest_of(data.keys[i] for i in test), "n": len(test)},
        {"classes_sha256": digest_of(data.classnames), "class_count": len(data.classnames), "language": "en"},
    ]
    image_ND, labels = encode_split(encoder, data, "test").numpy(), data.labels[test]
    for kind, templates in (("single", data.templates[:1]), ("ensemble", data.templates)):
        card = ProtocolCard.from_config(
            *common,
            {"task": f"zero_shot_{kind}", "templates_sha256": digest_of(templates), "template_count": len(templates), "aggregation": MEANS[kind]},
            {"metrics": {"acc": "top-1 and, from 5 classes on, top-5; a tie is wrong", "mean_per_class_recall": "classes in the test split"}},
        )
        weights_DC = encoder.classifier(data.classnames, templates).T.numpy()
        _classification(card, data, test, labels, metrics.classify(image_ND, weights_DC), results)
    if config.caption_likelihood and encoder.vlm.towers.decoder is not None:
        prompt = str((encoder.vlm.config.get("training", {}).get("objectives", {}).get("prefix_generation") or {}).get("prompt", ""))
        measured = {"acc": "top-1 and, from 5 classes on, top-5; a tie is wrong", "score": "mean log p of the tokens of the first template", "prompt": prompt}
        card = ProtocolCard.from_config(
            *common, {"task": "caption_likelihood", "templates_sha256": digest_of(data.templates[:1]), "template_count": 1, "metrics": measured}
        )
        said = fill(data.templates[:1], data.classnames)
        logits_NC = caption_log_likelihood(encoder.vlm, list(data.images(test)), said, prompt, config.batch).numpy()
        _classification(card, data, test, labels, logits_NC, results)
    if config.probe and len(data.rows("train")) and len(data.rows("val")):
        found = _probe(config, data, encoder)
        card = ProtocolCard.from_config(
            *common,
            {
                "task": "linear_probe",
                "metrics": {"acc": "top-1", "features": "raw, after the projection", "grid": config.probe_c, "max_iter": config.probe_max_iter},
            },
        )
        scores = found.model.decision_function(image_ND)
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
        logits = np.full((len(test), len(data.classnames)), -np.inf)
        logits[:, found.model.classes_] = scores
        _classification(card, data, test, labels, logits, results)


def _probe(config: Evaluate, data: EvalSet, encoder: Encoder) -> probe.Probe:
    """Strength chosen on validation data, then one fit on training and validation data."""
    parts = [(encode_split(encoder, data, split).numpy(), data.labels[data.rows(split)]) for split in ("train", "val")]
    return probe.choose(*parts[0], *parts[1], config.probe_c, config.probe_max_iter)


def _classification(card: ProtocolCard, data: EvalSet, rows: Any, labels: Any, logits_NC: Any, results: Results) -> None:
    best, names = logits_NC.argmax(axis=1), data.classnames
    about: dict[str, Any] = {
        "label": [names[c] for c in labels], "prediction": [names[c] for c in best], "score": metrics.softmax(logits_NC).max(axis=1),
        "group": [data.groups[i] for i in rows], "clustered": True,
    }  # fmt: skip
    ids = [data.keys[i] for i in rows]
    results.per_sample(card, "acc1", ids, metrics.topk_correct(logits_NC, labels).astype(float), **about)
    if len(names) >= 5 and card.task != "linear_probe":
        results.per_sample(card, "acc5", ids, metrics.topk_correct(logits_NC, labels, 5).astype(float), **about)
    recall = bootstrap_metric(
        lambda chosen: metrics.mean_per_class_recall(best[chosen], labels[chosen]), len(labels), 1_000, results.seed, np.asarray(about["group"])
    )
    results.whole(card, "mean_per_class_recall", recall, len(labels))


# ---------------------------------------------------------------- report


def _left_out(vlm: Vlm, results: Results) -> str:
    """Tasks that were not measured, and why."""
    measured = {row["task"] for row in results.metrics}
    dense = "the set of its scenes is not among the evaluated ones" if can_segment(vlm) else "this model does not show its patches in the joint space"
    whys = {"grounding": "this model has no regions", "segmentation": dense}
    return "".join(f"\n{task.capitalize()} was not measured: {why}.\n" for task, why in whys.items() if task not in measured)


def _report(stage: Stage, vlm: Vlm, heldout: HeldOut, results: Results) -> Report:
    results.write(stage.out)
    stages.write_json(stage.out / "model.json", {"model": vlm.digest, "recipe": vlm.config.get("recipe", ""), "parameters": vlm.config.get("parameters")})
    (stage.out / "report.md").write_text(markdown(vlm.digest, results) + _left_out(vlm, results))
    draw_metrics(stage.pictures / "metrics.png", results.metrics)
    catalog = pa.Table.from_pylist([{"model_id": row["model"], **{k: v for k, v in row.items() if k != "model"}} for row in results.metrics])
    shown = ("dataset", "task", "metric", "value", "ci_low", "ci_high", "n")
    return Report(
        counts={"heldout_pairs": len(heldout.uids), "heldout_pictures": len(heldout.sha256s), "cards": len(results.cards)},
        metrics=flat_metrics(results.metrics),
        tables={"metrics": [{name: row[name] for name in shown} for row in results.metrics]},
        pictures={"Metrics with 95 % intervals": "metrics.png"} | {title: file for title, file in DRAWN.items() if (stage.pictures / file).exists()},
        catalog={"metrics": catalog},
    )
