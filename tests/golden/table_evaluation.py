"""Golden `evaluation/`: classification, retrieval, segmentation, detection, robustness, statistics."""

from collections.abc import Iterator

import numpy as np

from tests.golden.check import Arrays, Check, Entry
from vlm_core.evaluate import detection, metrics, probe, retrieval, robustness, segmentation, statistics, video


def calibration(a: Arrays) -> Iterator[Check]:
    probs = metrics.softmax(a["logits"])
    yield Check("nll", metrics.nll(a["logits"], a["targets"]), a["nll"])
    yield Check("brier", metrics.brier(probs, a["targets"]), a["brier"])
    yield Check("nll_at_temperature", [metrics.nll(a["logits"], a["targets"], t) for t in a["temperatures"]], a["nll_at_temperature"])
    for name in (key for key in a if key.startswith("ece_")):
        _, norm, bins = name.split("_")
        yield Check(name, metrics.ece(probs, a["targets"], int(bins), norm), a[name])


def caption_selection(a: Arrays) -> Iterator[Check]:
    for name, value in retrieval.caption_selection(a["image_features"], a["text_features"]).items():
        yield Check(name, value, a[name])


def coco_ap_base_novel(a: Arrays) -> Iterator[Check]:
    truths = detection.Boxes(a["gt_image"], a["gt_category"], a["gt_box_xywh"], np.ones(len(a["gt_image"])), a["gt_crowd"].astype(bool), a["gt_area"])
    found = detection.Boxes(
        a["det_image"], a["det_category"], a["det_box_xywh"], a["det_score"], np.zeros(len(a["det_image"]), bool), a["det_box_xywh"][:, 2:].prod(axis=1)
    )
    number, base = int(a["num_categories"]), int(a["num_base"])
    images = sorted({*range(1, int(a["num_images"]) + 1), *a["gt_image"].tolist(), *a["det_image"].tolist()})
    scores = detection.coco_ap(truths, found, images, range(1, number + 1))
    yield Check("stats12", scores.stats12, a["stats12"])
    yield Check("ap_per_category", [scores.ap([k]) for k in range(1, number + 1)], a["ap_per_category"])
    yield Check("ap50_per_category", [scores.ap([k], iou=0.5) for k in range(1, number + 1)], a["ap50_per_category"])
    yield Check("ap50_all", scores.ap(iou=0.5), a["ap50_all"])
    for name, part in (("base", range(1, base + 1)), ("novel", range(base + 1, number + 1))):
        yield Check(f"ap_{name}", scores.ap(part), a[f"ap_{name}"])
        yield Check(f"ap50_{name}", scores.ap(part, iou=0.5), a[f"ap50_{name}"])


def effective_robustness(a: Arrays) -> Iterator[Check]:
    for scale in ("linear", "logit", "probit"):
        r = robustness.effective_robustness(a["baseline_id"], a["baseline_ood"], a["model_id"], a["model_ood"], scale)
        yield Check(f"{scale}_slope_intercept", [r.slope, r.intercept], a[f"{scale}_slope_intercept"])
        yield Check(f"{scale}_expected", r.expected, a[f"{scale}_expected"])
        yield Check(f"{scale}_effective_robustness", r.gain, a[f"{scale}_effective_robustness"])


def group_metrics(a: Arrays) -> Iterator[Check]:
    scores = metrics.group_metrics(a["group"], a["target"], a["pred"])
    yield Check("group_acc", scores.accuracy_G, a["group_acc"])
    yield Check("worst_group_acc", scores.worst, a["worst_group_acc"])
    yield Check("avg_acc", scores.average, a["avg_acc"])
    yield Check("macro_f1", scores.macro_f1, a["macro_f1"])
    yield Check("macro_recall", scores.macro_recall, a["macro_recall"])
    yield Check("wino_jaccard", metrics.choice_jaccard(a["wino_scores"], a["wino_truth"]), a["wino_jaccard"])
    yield Check("roc_auc", metrics.roc_auc(a["auc_score"], a["auc_label"]), a["roc_auc"])


def linear_probe_lbfgs(a: Arrays) -> Iterator[Check]:
    for name in (key for key in a if key.startswith("coef_C")):
        c = name.removeprefix("coef_C")
        fitted = probe.linear_probe(a["train_x"], a["train_y"], float(c), max_iter=5000, tol=1e-10)
        yield Check(name, fitted.coef_, a[name])
        yield Check(f"intercept_C{c}", fitted.intercept_, a[f"intercept_C{c}"])
        yield Check(f"acc_C{c}", probe.accuracy(fitted, a["test_x"], a["test_y"]), a[f"acc_C{c}"], 0, 1e-12)


def multilabel_ap(a: Arrays) -> Iterator[Check]:
    ap, ap11 = metrics.average_precision(a["scores"], a["targets"]), metrics.ap11(a["scores"], a["targets"])
    yield Check("ap_per_class", ap, a["ap_per_class"])
    yield Check("mean_ap", ap.mean(), a["mean_ap"])
    yield Check("ap11_per_class", ap11, a["ap11_per_class"])
    yield Check("map11_present", np.nanmean(ap11), a["map11_present"])


def paired_statistics(a: Arrays) -> Iterator[Check]:
    test = statistics.mcnemar(a["correct_a"], a["correct_b"])
    yield Check("n01", test.n01, a["n01"])
    yield Check("n10", test.n10, a["n10"])
    yield Check("mcnemar_exact_p", test.exact_p, a["mcnemar_exact_p"])
    yield Check("mcnemar_chi2_cc", test.chi2_cc, a["mcnemar_chi2_cc"])
    difference, interval = statistics.paired_bootstrap(a["correct_a"], a["correct_b"], a["bootstrap_index"])
    yield Check("bootstrap_diff", difference, a["bootstrap_diff"])
    yield Check("ci95", interval, a["ci95"])
    yield Check("wilson95_a", statistics.wilson(int(a["correct_a"].sum()), len(a["correct_a"])), a["wilson95_a"])
    yield Check("holm_adjusted", statistics.holm(a["p_values"]), a["holm_adjusted"])


def rareact_mwap(a: Arrays) -> Iterator[Check]:
    per_class, mean = video.rareact_mwap(a["scores"], a["sample_video"], a["sample_class"], a["annotation"], a["class_verb"], a["class_noun"])
    yield Check("wap_per_class", per_class, a["wap_per_class"])
    yield Check("mwap", mean, a["mwap"])


def reid_cmc_map(a: Arrays) -> Iterator[Check]:
    scores = retrieval.reid_cmc_map(
        a["query_features"], a["gallery_features"], a["query_id"], a["gallery_id"], a["query_camera"], a["gallery_camera"], len(a["cmc_1_to_10"])
    )
    yield Check("cmc_1_to_10", scores.cmc_K, a["cmc_1_to_10"])
    yield Check("mean_ap", scores.mean_ap, a["mean_ap"])


def retrieval_recall(a: Arrays) -> Iterator[Check]:
    ks = tuple(sorted({int(name.rpartition("_")[2]) for name in a if "_recall_at_" in name}))
    for name, value in retrieval.retrieval_recall(a["image_features"], a["text_features"], a["text_image_index"], ks).items():
        yield Check(name, value, a[name])


def segmentation_iou(a: Arrays) -> Iterator[Check]:
    counts = segmentation.confusion_matrix(a["ground_truth"], a["prediction"], int(a["num_classes"]))
    scores = segmentation.segmentation_scores(counts)
    seen, unseen, both = segmentation.seen_unseen_iou(scores, int(a["num_seen"]))
    yield Check("pixel_accuracy", scores.pixel_accuracy, a["pixel_accuracy"])
    yield Check("mean_accuracy", scores.mean_accuracy, a["mean_accuracy"])
    yield Check("fw_iou", scores.frequency_weighted_iou, a["fw_iou"])
    yield Check("miou_present", scores.miou, a["miou_present"])
    yield Check("class_iou", scores.iou_C, a["class_iou"])
    yield Check("class_present", scores.present_C, a["class_present"])
    yield Check("miou_seen", seen, a["miou_seen"])
    yield Check("miou_unseen", unseen, a["miou_unseen"])
    yield Check("hiou", both, a["hiou"])


def zeroshot_classifier(a: Arrays) -> Iterator[Check]:
    weights = metrics.classifier_weights(a["prompt_embeddings"])
    logits = metrics.classify(a["image_features"], weights)
    yield Check("weights", weights, a["weights"])
    yield Check("logits", logits, a["logits"])
    yield Check("acc1", metrics.topk_accuracy(logits, a["targets"], 1), a["acc1"])
    yield Check("acc5", metrics.topk_accuracy(logits, a["targets"], 5), a["acc5"])
    yield Check("mean_per_class_recall", metrics.mean_per_class_recall(logits.argmax(axis=1), a["targets"]), a["mean_per_class_recall"])


TABLE: dict[str, Entry] = {
    function.__name__: function
    for function in (
        calibration, caption_selection, coco_ap_base_novel, effective_robustness, group_metrics, linear_probe_lbfgs, multilabel_ap,
        paired_statistics, rareact_mwap, reid_cmc_map, retrieval_recall, segmentation_iou, zeroshot_classifier,
    )
}  # fmt: skip
