"""Golden entries of the data half: filters, hashes, duplicates, balance."""

import io
import json
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from tests.golden.check import Check, gradient, tensor
from vlm_core.data.captions import alip, recaption
from vlm_core.data.crawl import wat
from vlm_core.data.fetch import picture
from vlm_core.data.filter import dedup, entries, faces, perceptual, scores, select, text_rules
from vlm_core.data.web import rights
from vlm_core.data.web.address import FetchFailed
from vlm_core.objectives.weighted_captions import weighted_clip_loss

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
    texts, names = a["text"].tolist(), a["metadata"].tolist()
    match = entries.match_entries(texts, names, "padded")
    yield Check("match_v1", match, a["match_v1"])
    yield Check("match_v2_automaton", entries.match_entries(texts, names, "automaton"), a["match_v2_automaton"])
    counts = match.sum(0).astype(np.uint64)
    yield Check("entry_count", counts, a["entry_count"])
    prob = entries.entry_prob(counts, int(a["t"]))
    yield Check("entry_prob", prob, a["entry_prob"], **CLOSE)
    yield Check("curation_prob", entries.curation_prob(match, prob), a["curation_prob"], **CLOSE)
    # the reference's sequential draws follow the same law from another stream: replayed here with its generator
    rng = random.Random(int(a["py_random_seed"]))
    drawn = [any(rng.random() < prob[entry] for entry in hits) for hits in map(entries.Entries(names, "padded").find, texts)]
    yield Check("sampled_v1", np.array(drawn), a["sampled_v1"])
    tail = a["tail_counts"]
    yield Check("t_to_p", np.array([entries.t_to_p(tail, int(t)) for t in a["tail_t"]]), a["t_to_p"], rtol=1e-12, atol=0)
    yield Check("p_to_t", np.array([entries.p_to_t(tail, float(p)) for p in a["t_to_p"]]), a["p_to_t"])


def datacomp_image_based(a: Arrays) -> Iterator[Check]:
    ids = select.assign_centroids(a["pool_features"], a["centroids"], block=64)
    targets = np.unique(select.assign_centroids(a["target_features"], a["centroids"]))
    yield Check("pool_centroid_id", ids, a["pool_centroid_id"])
    yield Check("target_centroid_ids", targets, a["target_centroid_ids"])
    yield Check("keep", select.cluster_filter(ids, targets), a["keep"])


def negcliploss_normsim(a: Arrays) -> Iterator[Check]:
    image, text, tau = a["image"], a["text"], float(a["temperature"])
    yield Check("clip_score", scores.clip_score(image, text), a["clip_score"], **CLOSE)
    norm_text, norm_image = scores.batch_norms(image, text, tau)
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


def wat_extract(a: Arrays) -> Iterator[Check]:
    for kind in ("image", "image_only"):
        links = list(wat.extract_links(io.BytesIO(a["wat_gz"].tobytes()), kind, strict=False))
        for name, ours in (
            ("uid", [x.md5 for x in links]),
            ("url", [x.url for x in links]),
            ("alt", [x.alt for x in links]),
            ("page", [x.page for x in links]),
        ):
            yield Check(f"{kind}_{name}", np.array(ours), a[f"{kind}_{name}"])
        strict = {x.url for x in wat.extract_links(io.BytesIO(a["wat_gz"].tobytes()), kind)}
        yield Check(f"{kind}_malformed_hosts", sum("[" in url for url in strict), 0)


def xrobots_img2dataset(a: Arrays) -> Iterator[Check]:
    headers, words = [json.loads(text) for text in a["headers_json"].tolist()], a["disallowed"].tolist()
    for name, agents in (("blocked_with_token", [str(a["user_agent_token"])]), ("blocked_without_token", [])):
        reference = np.array([rights.xrobots_denied(values, agents, words, "reference") for values in headers])
        fixed = np.array([rights.xrobots_denied(values, agents) for values in headers])
        yield Check(name, reference, a[name])
        yield Check(f"{name}_superset", fixed | a[name], fixed)
        too_lax = np.array([values in (["noarchive,noai,max-snippet:-1"], ["none"]) for values in headers])
        yield Check(f"{name}_fixed", fixed & too_lax, too_lax)


def image_resize_blur(a: Arrays) -> Iterator[Check]:
    """Our decoding before img2dataset's resizer, and our blur. Pixels may differ by 2 of 255 on average, as its README says; in blurred boxes by 6."""
    from vlm_core.data.fetch.img2dataset_worker import Upright

    for i in range(int(a["n_inputs"])):
        data = a[f"input_{i}_png"].tobytes()
        for mode in a["modes"].tolist():
            for when in ("always", "onlybigger"):
                resizer = Upright(int(a["image_size"]), mode, when == "onlybigger", encode_quality=1, encode_format="png")
                encoded, *sizes, error = resizer.resize(io.BytesIO(data))
                ours, expected = np.asarray(Image.open(io.BytesIO(encoded))).astype(int), a[f"out_{i}_{mode}_{when}"].astype(int)
                ours = ours[..., ::-1] if ours.ndim == 3 else ours
                yield Check(f"size_{i}_{mode}_{when}", np.array(sizes), a[f"size_{i}_{mode}_{when}"])
                yield Check(f"shape_{i}_{mode}_{when}", np.array(ours.shape), np.array(expected.shape))
                yield Check(f"out_{i}_{mode}_{when}", abs(ours - expected).mean(), 0.0, rtol=0, atol=2)
        for j, (side, area, aspect) in enumerate(a["rule_args"]):
            limits = picture.Limits(int(min(area, 1e9)), 512, int(side), float(aspect) if np.isfinite(aspect) else 0.0)
            yield Check(f"rule_errors_{i}_{j}", np.array(_refusal(data, limits)), a["rule_errors"][i, j])
    image, boxes = a["blur_input_bgr"], [tuple(box) for box in a["blur_bboxes"].tolist()]
    apart = abs(faces.blur_boxes(image, boxes).astype(int) - a["blur_output_bgr"].astype(int))
    near = np.zeros(image.shape[:2], bool)
    corners = (np.array(boxes) * np.tile(image.shape[1::-1], 2)).astype(int)
    longest = int((corners[:, 2:] - corners[:, :2]).max())
    for left, top, right, bottom in corners.tolist():
        more = int(0.1 * max(right - left, bottom - top)) + 1 + int(np.ceil(0.1 * longest))  # grown by a tenth, and soft over the kernel's radius
        near[max(top - more, 0) : bottom + more, max(left - more, 0) : right + more] = True
    yield Check("blur_outside", apart[~near].max(), 0, rtol=0, atol=1)
    yield Check("blur_inside", apart[near].mean(), 0.0, rtol=0, atol=6)


def _refusal(data: bytes, limits: picture.Limits) -> str:
    try:
        picture.probe(io.BytesIO(data), limits)
    except FetchFailed as failed:
        return {"too_small": "image too small", "too_many_pixels": "image area too large", "aspect_ratio": "aspect ratio too large"}[failed.status]
    return ""


def laclip_rewrite(a: Arrays) -> Iterator[Check]:
    examples = list(zip(a["example_source"].tolist(), a["example_target"].tolist(), strict=True))
    captions, continuations = a["caption"].tolist(), a["generated_continuation"].tolist()
    prompts = [recaption.build_prompt(examples, caption) for caption in captions]
    outputs = [prompt + more for prompt, more in zip(prompts, continuations, strict=True)]
    yield Check("prompt", np.array(prompts), a["prompt"])
    as_official = [recaption.parse_rewrite(prompt, output, "reference") for prompt, output in zip(prompts, outputs, strict=True)]
    yield Check("parsed, as the reference does", np.array(as_official), a["parsed"])
    fixed = [recaption.parse_rewrite(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
    true = [
        parsed if "=>" not in caption else more.strip().splitlines()[0]
        for caption, parsed, more in zip(captions, a["parsed"].tolist(), continuations, strict=True)
    ]
    yield Check("parsed, also after a caption with an arrow", np.array(fixed), np.array(true))
    draw = random.Random(int(a["choice_seed"]))
    chosen = [recaption.choose_caption(row, draw) for row in a["choice_candidates"].tolist()]
    yield Check("choice", np.array(chosen), a["choice_expected"])


def alip_adaptive(a: Arrays) -> Iterator[Check]:
    """Four steps of ALIP, each with the means that the step before left; weights are constants of the gradient."""
    means = alip.Means(*torch.full((3,), float(a["ema_init"])))
    for step in range(len(a["loss"])):
        image, raw, caption = (tensor(a[name][step], grad=True) for name in ("image", "raw_text", "caption"))
        weights, means = alip.alip_weights(image, raw, caption, means, float(a["gamma"]), float(a["ema_momentum"]))
        for name, ours in (("w_sample", weights.sample_B), ("w_raw", weights.raw_B), ("w_caption", weights.caption_B)):
            yield Check(f"{name}[{step}]", ours, a[name][step], **CLOSE)
        for name, ours in zip(("ema_text", "ema_raw", "ema_caption"), means, strict=True):
            yield Check(f"{name}[{step}]", ours, a[name][step], **CLOSE)
        scale = tensor(a["logit_scale"])
        loss_raw = weighted_clip_loss(image, raw, scale, weights.raw_B, weights.sample_B)
        loss_caption = weighted_clip_loss(image, caption, scale, weights.caption_B, weights.sample_B)
        loss = loss_raw + loss_caption
        for name, ours in (("loss_raw", loss_raw), ("loss_caption", loss_caption), ("loss", loss)):
            yield Check(f"{name}[{step}]", ours, a[name][step], **CLOSE)
        for name, leaf in (("grad_image", image), ("grad_raw", raw), ("grad_caption", caption)):
            yield Check(f"{name}[{step}]", gradient(loss, leaf), a[name][step], rtol=1e-4, atol=1e-7)


def alip_weights_warm(a: Arrays) -> Iterator[Check]:
    """One step with warm means: gated and ungated samples."""
    parts = (tensor(a[name]) for name in ("image", "raw_text", "caption"))
    weights, means = alip.alip_weights(*parts, alip.Means(*(tensor(a[f"ema_{name}_in"]) for name in alip.Means._fields)))
    for name, ours in (("w_sample", weights.sample_B), ("w_raw", weights.raw_B), ("w_caption", weights.caption_B)):
        yield Check(name, ours, a[name], **CLOSE)
    for name, ours in zip(("ema_text", "ema_raw", "ema_caption"), means, strict=True):
        yield Check(name, ours, a[name], **CLOSE)


TABLE = {
    "alip_adaptive": alip_adaptive,
    "alip_weights_warm": alip_weights_warm,
    "datacomp_basic": datacomp_basic,
    "perceptual_hash": perceptual_hash,
    "semdedup": semdedup,
    "metaclip_balance": metaclip_balance,
    "datacomp_image_based": datacomp_image_based,
    "negcliploss_normsim": negcliploss_normsim,
    "hype_hyperbolic": hype_hyperbolic,
    "wat_extract": wat_extract,
    "xrobots_img2dataset": xrobots_img2dataset,
    "image_resize_blur": image_resize_blur,
    "laclip_rewrite": laclip_rewrite,
}
