"""The verb `embed`: pictures and raw captions to unit vectors in clip-retrieval's folder layout, and an index over them.

    img_emb/img_emb_0.npy, text_emb/text_emb_0.npy   float16 (N, D), row i of both and of the metadata is one sample, rows sorted by uid
    metadata/metadata_0.parquet                      uid, caption, url, page_url, final_url, pages, lang, sha256, fitted (helped to fit the heads, though not those that score it),
                                                     score (cosine before rounding to float16), masked_score, text_area, text_overlap (T-MARS; null when not asked for)
    index/image.index, index/text.index              faiss, built by `clip-retrieval index`
    scorer.json (+ scorer.safetensors)               which scorer, so that new texts and pictures can meet these vectors

open_clip models are run by `clip-retrieval inference`; the offline scorer writes the same layout itself. What towers say of pictures and texts is kept beside
the output (`kept_outputs.py`), so that the next run looks at new ones only and writes the same bytes as one from nothing.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlm_core.data.child import run_module
from vlm_core.data.config import Embed, ModelScorer, OfflineScorer, OpenClipScorer
from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.sample import PAIRS
from vlm_core.data.shards.records import read_table
from vlm_core.errors import LaunchError, MissingInput, NothingLeft
from vlm_core.models import embed_report, masked, open_clip_ranges, picture_ranges, whole_batches
from vlm_core.models.kept_outputs import Kept, digest_of
from vlm_core.models.scorer import Offline, OpenClip, Scorer, Vectors, device_of, fit_heads, sentences
from vlm_core.models.trained_scorer import Trained, find, refuse_overlap
from vlm_core.stage import Report, Stage, write_json

FOLDS = 2  # halves of the pictures; each is scored by heads that were fitted on the other
MEASURED = 600  # trusted pairs on which the heads are measured
METADATA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "caption", "url", "page_url", "lang", "sha256", "final_url")),
        PAIRS.field("pages"),  # every address of a sample, for takedowns
        ("fitted", pa.bool_()),
        ("score", pa.float32()),
        ("masked_score", pa.float32()),
        ("text_area", pa.float32()),
        ("text_overlap", pa.float32()),
    ]
)


class Embedded(NamedTuple):
    """Row i of everything is sample i."""

    samples: pa.Table
    image_ND: Vectors
    text_ND: Vectors
    scorer: Scorer
    metrics: dict[str, float]
    scores: NDArray[np.float32]  # in full precision
    other_pictures: Callable[[Sequence[Image.Image], NDArray[np.int64]], Vectors]  # vectors of pictures in place of those of some rows
    kept: dict[str, int]  # pictures and texts that are new, and those whose outputs the last run left


def embed(config: Embed, stage: Stage) -> Report:
    """Samples whose picture was fetched (status ok) get a row; the others are counted."""
    samples, counts = _samples(stage)
    store = Pictures(stage.input("images"))
    match config.scorer:
        case OfflineScorer() as settings:
            found = _offline(settings, samples, stage)
        case OpenClipScorer() as settings:
            found = _open_clip(settings, samples, stage, config.python)
        case ModelScorer() as settings:
            found = _trained(settings, samples, stage)
    counts = {**counts, "unreadable": len(samples) - len(found.samples), "embedded": len(found.samples), **found.kept}
    extra = masked.masked_scores(config.text_mask, found, store, stage) if config.text_mask is not None else {}
    write_layout(stage.out, found, extra)
    found.scorer.save(stage.out)
    build_index(stage.out, config, stage.state)
    metrics = {**found.metrics, "score_mean": float(found.scores.mean()), "width": float(found.scorer.dim)}
    if extra:
        metrics |= {"with_lettering": float((extra["text_area"] > 0).mean()), "masked_score_mean": float(extra["masked_score"].mean())}
        counts["with_lettering"] = int((extra["text_area"] > 0).sum())
    if "text_overlap" in extra:
        metrics["captions_read_in_picture"] = float((extra["text_overlap"] >= 0.5).mean())  # at least half of the words
    looks = embed_report.pictures(found.samples, found.scores, store.read, stage.pictures)
    tables = embed_report.tables(found.samples, found.scores, found.scorer)
    return Report(counts=counts, metrics=metrics, tables=tables, pictures=looks, catalog=_catalog(found.scorer))


def _catalog(scorer: Scorer) -> dict[str, pa.Table]:
    """Which model of ours made the embeddings: what they filter stands on its data, too."""
    return {"scorers": pa.table({"model_id": [scorer.model.digest]})} if isinstance(scorer, Trained) else {}


def write_layout(out: Path, found: Embedded, extra: Mapping[str, NDArray[np.float32]]) -> None:
    for folder, rows in (("img_emb", found.image_ND), ("text_emb", found.text_ND)):
        (out / folder).mkdir()
        np.save(out / folder / f"{folder}_0.npy", rows.astype(np.float16))
    (out / "metadata").mkdir()
    none = pa.nulls(len(found.samples), pa.float32())
    numbers = {"score": found.scores, **{name: extra.get(name, none) for name in ("masked_score", "text_area", "text_overlap")}}
    samples = found.samples
    for name, values in numbers.items():
        samples = samples.append_column(name, pa.array(values, pa.float32()))
    pq.write_table(samples.select(METADATA.names).cast(METADATA), out / "metadata" / "metadata_0.parquet")


def build_index(folder: Path, config: Embed, work: Path) -> None:
    """`clip-retrieval index` in a process of its own. One thread up to 100,000 rows: more threads give other bytes every time."""
    rows = len(np.load(folder / "img_emb" / "img_emb_0.npy", mmap_mode="r"))
    shutil.rmtree(folder / "index", ignore_errors=True)  # it refuses a folder that it has filled before
    (folder / "index").mkdir()
    job = {
        "do": "index", "embeddings_folder": str(folder), "index_folder": str(folder / "index"), "copy_metadata": False,
        "max_index_memory_usage": config.index_memory, "current_memory_available": f"{2 * int(config.index_memory[:-1])}{config.index_memory[-1]}", "nb_cores": 1 if rows <= 100_000 else torch.get_num_threads(),
    }  # fmt: skip
    write_json(work / "index.json", job)
    run_module(open_clip_ranges.WORKER, work / "index.json", work / "index.log", config.python)
    for part in ("image", "text"):
        if not (folder / "index" / f"{part}.index").exists():  # it logs an error and ends with 0
            said = (work / "index.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise LaunchError(f"Found no {part}.index after 'clip-retrieval index' ({said}), expected one; raise index_memory or read {work}/index.log.")


def _samples(stage: Stage) -> tuple[pa.Table, dict[str, int]]:
    """Candidate pairs whose picture is there, sorted by uid."""
    pairs = read_table(stage.input("pairs") / "pairs.parquet", ("uid", "url", "page_url", "caption", "lang"), ("pages",))
    status_file = stage.input("images") / "status.parquet"
    if not status_file.exists():
        raise MissingInput(f"Found no file {status_file}, expected the table of downloads; run 'vlm download' first.")
    status = read_table(status_file, ("uid", "status", "sha256"), ("final_url",))
    kept = status.filter(pa.compute.equal(status["status"], "ok")).drop_columns(["status"])
    pairs = pairs.set_column(pairs.schema.get_field_index("lang"), "lang", pa.compute.fill_null(pairs["lang"], ""))
    pages = pairs["pages"] if "pages" in pairs.column_names else pa.nulls(len(pairs), METADATA.field("pages").type)
    plain = pairs.select(["uid", "url", "page_url", "caption", "lang"])
    samples = plain.join(kept, keys="uid", join_type="inner").sort_by("uid").combine_chunks()
    samples = samples.append_column("pages", pages.take(pa.compute.index_in(samples["uid"], pairs["uid"])))  # a join takes no lists
    if "final_url" not in samples.column_names:
        samples = samples.append_column("final_url", pa.nulls(len(samples), pa.string()))
    if not len(samples):
        raise NothingLeft(f"Found none of {len(pairs):,} candidate pairs with a picture, expected some with status ok; look at the reasons in {status_file}.")
    return samples, {"in": len(pairs), "without_picture": len(pairs) - len(samples)}


# ---------------------------------------------------------------- offline


def _offline(config: OfflineScorer, samples: pa.Table, stage: Stage) -> Embedded:
    scorer = Offline(config.size_px, config.names, config.precision, device=device_of(config.device))
    kept = Kept(stage.kept, f"{scorer.version} {scorer.device}", picture_ranges.__name__)
    shas, first, image_row = np.unique(samples["sha256"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True)
    uids = samples["uid"].to_pylist()
    seen = kept.of("pictures", shas.tolist(), lambda new: picture_ranges.offline(stage, scorer, [uids[row] for row in first[new]]))
    features_IE, bridge_IE = torch.from_numpy(seen["features"]), torch.from_numpy(seen["bridge"])
    captions, text_row = np.unique(samples["caption"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    text_TE = torch.from_numpy(_texts(kept, captions.tolist(), sentences().lengths, lambda part: sentences()(part).numpy(), stage))
    chosen = trusted_pairs(config, samples, image_row)
    fold_I = torch.tensor([hashlib.sha256(f"{config.seed}:{sha}".encode()).digest()[0] % FOLDS for sha in shas])
    fold = fold_I[image_row]
    metrics: dict[str, float] = {}
    if len(chosen):
        parts = [chosen[(fold[chosen] != held).numpy()] for held in range(FOLDS)]
        if min(map(len, parts)) < 2:
            raise NothingLeft(f"Found {len(chosen)} pairs to fit the scorer, expected at least two in each half; trust more hosts or set scorer.fit_pairs=0.")
        scorer.with_heads(*(fit_heads(features_IE[image_row[rows]], text_TE[text_row[rows]], config.seed, config.fit_epochs) for rows in parts))
        shown = chosen[:MEASURED]
        metrics = {
            "fit_pairs": float(len(chosen)),
            **measure(scorer, features_IE[image_row[shown]], bridge_IE[image_row[shown]], text_TE[text_row[shown]], fold[shown]),
        }
    samples = samples.append_column("fitted", pa.array(np.isin(np.arange(len(samples)), chosen)))
    image_ND = scorer.images_of(features_IE, bridge_IE, fold_I)[image_row]
    text_ND = scorer.texts_of(text_TE[text_row], fold)

    def other_pictures(images: Sequence[Image.Image], rows: NDArray[np.int64]) -> Vectors:
        return scorer.images_of(*scorer.trunk(images), fold[torch.from_numpy(rows)])

    return Embedded(samples, image_ND, text_ND, scorer, metrics, cosines(image_ND, text_ND), other_pictures, kept.counts)


def _texts(
    kept: Kept, texts: list[str], lengths: Callable[[Sequence[str]], NDArray[np.int64]], encode: Callable[[Sequence[str]], Vectors], stage: Stage
) -> Vectors:
    """Vectors (N, D) of distinct texts; only those are read that the last run did not."""

    def make(new: NDArray[np.int64]) -> dict[str, Vectors]:
        stage.progress("texts: reading", len(new), len(texts))
        return {"text": whole_batches.texts([texts[row] for row in new], lengths, encode)}

    return kept.of("texts", [digest_of(text) for text in texts], make)["text"]


def cosines(image_ND: Vectors, text_ND: Vectors) -> NDArray[np.float32]:
    return np.einsum("nd,nd->n", image_ND, text_ND)


def trusted_pairs(config: OfflineScorer, samples: pa.Table, image_row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that fit the heads: distinct pictures with distinct captions of trusted hosts, drawn by seed and uid; at most fit_pairs."""
    rows = samples.select(["uid", "url", "caption", "lang"]).to_pylist()
    draw = sorted(range(len(rows)), key=lambda row: hashlib.sha256(f"{config.seed}:{rows[row]['uid']}".encode()).digest())
    chosen: list[int] = []
    captions, images = set[str](), set[int]()
    for row in draw if config.fit_pairs else ():
        caption, host = rows[row]["caption"].casefold().strip(), urlsplit(rows[row]["url"]).hostname
        trusted = (not config.trusted or host in config.trusted) and rows[row]["lang"].split("-")[0] == config.lang
        if trusted and caption and caption not in captions and image_row[row] not in images:
            chosen.append(row)
            captions.add(caption)
            images.add(int(image_row[row]))
    chosen = chosen[: config.fit_pairs]
    if not chosen and config.fit_pairs:
        raise NothingLeft(
            f"Found no pairs of the hosts {config.trusted} in language {config.lang!r} to fit the scorer, expected more; correct scorer.trusted or set scorer.fit_pairs=0."
        )
    return np.array(chosen, np.int64)


def measure(scorer: Offline, features_NE: Tensor, bridge_NE: Tensor, text_NE: Tensor, fold_N: Tensor) -> dict[str, float]:
    """AUC of matching against non-matching pairs, by heads that have not seen them: of the bridge, of the heads, of both; mean of the folds."""
    from sklearn.metrics import roc_auc_score

    areas: dict[str, list[float]] = {}
    for held in range(FOLDS):
        rows = fold_N == held
        if rows.sum() < 2:
            continue
        both = scorer.images_of(features_NE[rows], bridge_NE[rows], fold_N[rows]) @ scorer.texts_of(text_NE[rows], fold_N[rows]).T
        bridge = (bridge_NE[rows] @ text_NE[rows].T).numpy()
        for name, scores in (("bridge", bridge), ("heads", 2 * both - bridge), ("both", both)):
            areas.setdefault(f"auc_{name}", []).append(float(roc_auc_score(np.eye(len(both), dtype=bool).ravel(), scores.ravel())))
    return {name: float(np.mean(values)) for name, values in areas.items()}


# ---------------------------------------------------------------- a model of ours


def _trained(config: ModelScorer, samples: pa.Table, stage: Stage) -> Embedded:
    """Distinct pictures and captions through the model, block by block; blocks that a killed run finished are read back."""
    folder = find(config, stage)
    compared = refuse_overlap(config, folder, stage)
    scorer = Trained(folder, device_of(config.device))
    kept = Kept(stage.kept, f"{scorer.version} {scorer.model.device}", picture_ranges.__name__)
    shas, first, image_row = np.unique(samples["sha256"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True)
    uids = samples["uid"].to_pylist()
    device = str(scorer.model.device)
    seen_ID = kept.of("pictures", shas.tolist(), lambda new: {"image": picture_ranges.trained(stage, folder, device, [uids[row] for row in first[new]])})[
        "image"
    ]
    captions, text_row = np.unique(samples["caption"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    image_ND, text_ND = seen_ID[image_row], _texts(kept, captions.tolist(), scorer.lengths, scorer.encode_texts, stage)[text_row]
    samples = samples.append_column("fitted", pa.array(np.zeros(len(samples), bool)))
    metrics = {f"test_pictures_compared.{name}": float(count) for name, count in compared.items()}
    return Embedded(samples, image_ND, text_ND, scorer, metrics, cosines(image_ND, text_ND), lambda images, _: scorer.encode_images(images), kept.counts)


# ---------------------------------------------------------------- open_clip


def _open_clip(config: OpenClipScorer, samples: pa.Table, stage: Stage, python: str) -> Embedded:
    """`clip-retrieval inference` over distinct pairs of picture and caption, range by range."""
    scorer = OpenClip(config)
    kept = Kept(stage.kept, f"{scorer.version} {config.batch} {device_of('auto')}", open_clip_ranges.__name__)
    uids, captions, shas = (samples[name].to_pylist() for name in ("uid", "caption", "sha256"))
    names = [f"{sha}-{digest_of(caption)}" for sha, caption in zip(shas, captions, strict=True)]
    keys, first, row_of = np.unique(names, return_index=True, return_inverse=True)

    def make(new: NDArray[np.int64]) -> open_clip_ranges.Arrays:
        return open_clip_ranges.pairs(stage, config, python, [uids[row] for row in first[new]], [captions[row] for row in first[new]])

    found = {name: rows[row_of] for name, rows in kept.of("pairs", keys.tolist(), make).items()}
    read = ~np.isnan(found["score"])
    samples = samples.filter(pa.array(read))
    samples = samples.append_column("fitted", pa.array(np.zeros(len(samples), bool)))
    image, text, score = (found[name][read] for name in ("image", "text", "score"))
    return Embedded(samples, image, text, scorer, {}, score, lambda images, _: scorer.encode_images(images), kept.counts)
