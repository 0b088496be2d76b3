"""Golden entries of the data half: filters, hashes, duplicates, balance."""

import random
from collections.abc import Iterator

import numpy as np

from tests.golden.check import Check
from vlm_core.data import dedup, perceptual, scores, select, text_rules

Arrays = dict[str, np.ndarray]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 of the reference, as its README says


def datacomp_basic(a: Arrays) -> Iterator[Check]:
    text, lang, uid = a["text"].tolist(), a["lang"].tolist(), a["uid"].tolist()
    keep = text_rules.basic_rules(text, lang, a["width"], a["height"])
    yield Check("keep_basic", keep, a["keep_basic"])
    yield Check("keep_caption_filter", text_rules.caption_rules(text, lang), a["keep_caption_filter"])
    yield Check("kept_uids_sorted", select.uid_pairs(a["uid"][keep].tolist()), a["kept_uids_sorted"])
    for i, fraction in enumerate(a["fractions"]):
        threshold = np.float32(select.fraction_threshold(a["clip_score"], float(fraction), "reference"))
        yield Check(f"fraction_threshold[{i}]", threshold, a["fraction_threshold"][i], rtol=0, atol=0)
        yield Check(f"keep_top[{i}]", select.keep_top(a["clip_score"], uid, float(fraction), "reference"), a["keep_top"][i])


def perceptual_hash(a: Arrays) -> Iterator[Check]:
    rgb = [a[f"rgb_{i}"] for i in range(int(a["n"]))]
    bits, quality = zip(*map(perceptual.pdq, rgb), strict=True)
    yield Check("pdq_quality", np.array(quality), a["pdq_quality"])
    for name, ours, reference in (
        ("pdq", np.stack(bits), a["pdq_bits"]),
        ("phash", np.stack([perceptual.phash(x) for x in rgb]), a["phash_bits"]),
        ("dhash", np.stack([perceptual.dhash(x) for x in rgb]), a["dhash_bits"]),
    ):
        yield Check(f"{name}_bits", ours.astype(bool), reference.astype(bool))
    for name, width in (("pdq", 256), ("phash", 64)):
        codes = perceptual.parse_hex([perceptual.to_hex(row) for row in a[f"{name}_bits"]], width)
        yield Check(f"{name}_hamming", perceptual.distance(codes[:, None], codes[None, :]), a[f"{name}_hamming"])


def semdedup(a: Arrays) -> Iterator[Check]:
    far = [float(dedup.centroid_distance(row[None], a["centroids"][c])[0]) for row, c in zip(a["embeddings"], a["cluster_id"], strict=True)]
    yield Check("cos_dist_to_centroid", np.array(far), a["cos_dist_to_centroid"], **CLOSE)
    for keep in ("hard", "easy"):
        rank, largest = dedup.semdedup(a["embeddings"], a["centroids"], a["cluster_id"], keep, block=7)
        yield Check(f"rank_in_cluster_{keep}", rank, a[f"rank_in_cluster_{keep}"])
        yield Check(f"max_sim_{keep}", largest, a[f"max_sim_{keep}"], **CLOSE)
        removed = np.stack([dedup.semantic_duplicates(largest, float(eps)) for eps in a["eps"]])
        yield Check(f"removed_{keep}", removed, a[f"removed_{keep}"])


def metaclip_balance(a: Arrays) -> Iterator[Check]:
    texts, entries = a["text"].tolist(), a["metadata"].tolist()
    match = select.match_entries(texts, entries, "padded")
    yield Check("match_v1", match, a["match_v1"])
    yield Check("match_v2_automaton", select.match_entries(texts, entries, "automaton"), a["match_v2_automaton"])
    counts = match.sum(0).astype(np.uint64)
    yield Check("entry_count", counts, a["entry_count"])
    prob = select.entry_prob(counts, int(a["t"]))
    yield Check("entry_prob", prob, a["entry_prob"], **CLOSE)
    yield Check("curation_prob", select.curation_prob(match, prob), a["curation_prob"], **CLOSE)
    # the reference's sequential draws follow the same law from another stream: replayed here with its generator
    rng = random.Random(int(a["py_random_seed"]))
    drawn = [any(rng.random() < prob[entry] for entry in hits) for hits in select.match_lists(texts, entries, "padded")]
    yield Check("sampled_v1", np.array(drawn), a["sampled_v1"])
    tail = a["tail_counts"]
    yield Check("t_to_p", np.array([select.t_to_p(tail, int(t)) for t in a["tail_t"]]), a["t_to_p"], rtol=1e-12, atol=0)
    yield Check("p_to_t", np.array([select.p_to_t(tail, float(p)) for p in a["t_to_p"]]), a["p_to_t"])


def datacomp_image_based(a: Arrays) -> Iterator[Check]:
    ids = select.assign_centroids(a["pool_features"], a["centroids"], block=64)
    targets = np.unique(select.assign_centroids(a["target_features"], a["centroids"]))
    yield Check("pool_centroid_id", ids, a["pool_centroid_id"])
    yield Check("target_centroid_ids", targets, a["target_centroid_ids"])
    yield Check("keep", select.cluster_filter(ids, targets), a["keep"])


def negcliploss_normsim(a: Arrays) -> Iterator[Check]:
    image, text, tau = a["image"], a["text"], float(a["temperature"])
    yield Check("clip_score", scores.clip_score(image, text), a["clip_score"], **CLOSE)
    norm_text, norm_image = scores.batch_norms(image @ text.T, tau)
    yield Check("norm_text", norm_text, a["norm_text"], **CLOSE)
    yield Check("norm_image", norm_image, a["norm_image"], **CLOSE)
    yield Check("neg_clip_loss", scores.neg_clip_loss(image, text, tau), a["neg_clip_loss"], **CLOSE)
    for p, name in ((2, "normsim_2"), (np.inf, "normsim_inf")):
        yield Check(name, scores.norm_sim(image, a["target_image"], p), a[name], **CLOSE)


def hype_hyperbolic(a: Arrays) -> Iterator[Check]:
    c = float(a["curvature"])
    space, time = scores.lorentz_lift(a["image"], c)
    yield Check("lift_space", space, a["lift_space"], **CLOSE)
    yield Check("lift_time", time, a["lift_time"], **CLOSE)
    yield Check("neg_lorentz_distance", scores.neg_lorentz_distance(a["image"], a["text"], c), a["neg_lorentz_distance"], **CLOSE)
    yield Check("entailment_text_image", scores.entailment(a["text"], a["image"], c), a["entailment_text_image"], **CLOSE)
    image_spec, text_spec = scores.specificity(a["image"], a["text"], a["image_ref"], a["text_ref"], c)
    yield Check("image_specificity", image_spec, a["image_specificity"], **CLOSE)
    yield Check("text_specificity", text_spec, a["text_specificity"], **CLOSE)


TABLE = {
    "datacomp_basic": datacomp_basic,
    "perceptual_hash": perceptual_hash,
    "semdedup": semdedup,
    "metaclip_balance": metaclip_balance,
    "datacomp_image_based": datacomp_image_based,
    "negcliploss_normsim": negcliploss_normsim,
    "hype_hyperbolic": hype_hyperbolic,
}
