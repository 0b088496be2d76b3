"""The verb `embed`: pictures and raw captions to unit vectors in clip-retrieval's folder layout, and an index over them.

    img_emb/img_emb_0.npy, text_emb/text_emb_0.npy   float16 (N, D), row i of both and of the metadata is one sample, rows sorted by uid
    metadata/metadata_0.parquet                      uid, caption, url, page_url, lang, sha256, fitted (helped to fit the heads, though not those that score it),
                                                     score (cosine before rounding to float16), masked_score and text_area (T-MARS; null when not asked for)
    index/image.index, index/text.index              faiss, built by `clip-retrieval index`
    scorer.json (+ scorer.safetensors)               which scorer, so that new texts and pictures can meet these vectors

open_clip models are run by `clip-retrieval inference`; the offline scorer writes the same layout itself.
"""

import hashlib
import json
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
from vlm_core.data.shards.tar import TarWriter
from vlm_core.errors import LaunchError, MissingInput, NothingLeft
from vlm_core.models import embed_report, masked, picture_ranges
from vlm_core.models.scorer import Offline, OpenClip, Scorer, Vectors, fit_heads, sentences
from vlm_core.models.trained_scorer import Trained, find, refuse_overlap
from vlm_core.stage import Report, Stage, write_json

BLOCK = 512  # pictures whose tower outputs are kept together, so that a killed run goes on there
FOLDS = 2  # halves of the pictures; each is scored by heads that were fitted on the other
MEASURED = 600  # trusted pairs on which the heads are measured
METADATA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "caption", "url", "page_url", "lang", "sha256")),
        ("fitted", pa.bool_()),
        ("score", pa.float32()),
        ("masked_score", pa.float32()),
        ("text_area", pa.float32()),
    ]
)
WORKER = "vlm_core.models.clip_retrieval_worker"


class Embedded(NamedTuple):
    """Row i of everything is sample i."""

    samples: pa.Table
    image_ND: Vectors
    text_ND: Vectors
    scorer: Scorer
    metrics: dict[str, float]
    scores: NDArray[np.float32]  # in full precision
    other_pictures: Callable[[Sequence[Image.Image], NDArray[np.int64]], Vectors]  # vectors of pictures in place of those of some rows


def embed(config: Embed, stage: Stage) -> Report:
    """Samples whose picture was fetched (status ok) get a row; the others are counted."""
    samples, counts = _samples(stage)
    store = Pictures(stage.input("images"))
    match config.scorer:
        case OfflineScorer() as settings:
            found = _offline(settings, samples, store, stage)
        case OpenClipScorer() as settings:
            found = _open_clip(settings, samples, store, stage, config.python)
        case ModelScorer() as settings:
            found = _trained(settings, samples, store, stage)
    counts = {**counts, "unreadable": len(samples) - len(found.samples), "embedded": len(found.samples)}
    extra = masked.masked_scores(config.text_mask, found, store, stage) if config.text_mask is not None else {}
    write_layout(stage.out, found, extra)
    found.scorer.save(stage.out)
    build_index(stage.out, config, stage.state)
    metrics = {**found.metrics, "score_mean": float(found.scores.mean()), "width": float(found.scorer.dim)}
    if extra:
        metrics |= {"with_lettering": float((extra["text_area"] > 0).mean()), "masked_score_mean": float(extra["masked_score"].mean())}
        counts["with_lettering"] = int((extra["text_area"] > 0).sum())
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
    numbers = {"score": found.scores, "masked_score": extra.get("masked_score", none), "text_area": extra.get("text_area", none)}
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
    run_module(WORKER, work / "index.json", work / "index.log", config.python)
    for part in ("image", "text"):
        if not (folder / "index" / f"{part}.index").exists():  # it logs an error and ends with 0
            said = (work / "index.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise LaunchError(f"Found no {part}.index after 'clip-retrieval index' ({said}), expected one; raise index_memory or read {work}/index.log.")


def _samples(stage: Stage) -> tuple[pa.Table, dict[str, int]]:
    """Candidate pairs whose picture is there, sorted by uid."""
    pairs = pq.read_table(stage.input("pairs") / "pairs.parquet", columns=["uid", "url", "page_url", "caption", "lang"])
    status_file = stage.input("images") / "status.parquet"
    if not status_file.exists():
        raise MissingInput(f"Found no file {status_file}, expected the table of downloads; run 'vlm download' first.")
    status = pq.read_table(status_file, columns=["uid", "status", "sha256"])
    kept = status.filter(pa.compute.equal(status["status"], "ok")).drop_columns(["status"])
    pairs = pairs.set_column(pairs.schema.get_field_index("lang"), "lang", pa.compute.fill_null(pairs["lang"], ""))
    samples = pairs.join(kept, keys="uid", join_type="inner").sort_by("uid").combine_chunks()
    if not len(samples):
        raise NothingLeft(f"Found none of {len(pairs):,} candidate pairs with a picture, expected some with status ok; look at the reasons in {status_file}.")
    return samples, {"in": len(pairs), "without_picture": len(pairs) - len(samples)}


# ---------------------------------------------------------------- offline


def _offline(config: OfflineScorer, samples: pa.Table, store: Pictures, stage: Stage) -> Embedded:
    scorer = Offline(config.size_px, config.names, config.precision)
    shas, first, image_row = np.unique(samples["sha256"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True)
    uids = samples["uid"].to_pylist()
    seen = picture_ranges.offline(stage, scorer, [uids[row] for row in first])
    features_IE, bridge_IE = torch.from_numpy(seen["features"]), torch.from_numpy(seen["bridge"])
    captions, text_row = np.unique(samples["caption"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    stage.progress("texts: reading", len(captions), len(captions))
    text_TE = sentences()(captions.tolist())
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

    return Embedded(samples, image_ND, text_ND, scorer, metrics, cosines(image_ND, text_ND), other_pictures)


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


def _trained(config: ModelScorer, samples: pa.Table, store: Pictures, stage: Stage) -> Embedded:
    """Distinct pictures and captions through the model, block by block; blocks that a killed run finished are read back."""
    folder = find(config, stage)
    compared = refuse_overlap(config, folder, stage)
    scorer = Trained(folder)
    _, first, image_row = np.unique(samples["sha256"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True)
    uids = samples["uid"].to_pylist()
    seen_ID = picture_ranges.trained(stage, folder, [uids[row] for row in first])
    captions, text_row = np.unique(samples["caption"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    image_ND, text_ND = seen_ID[image_row], scorer.encode_texts(captions.tolist())[text_row]
    samples = samples.append_column("fitted", pa.array(np.zeros(len(samples), bool)))
    metrics = {f"test_pictures_compared.{name}": float(count) for name, count in compared.items()}
    return Embedded(samples, image_ND, text_ND, scorer, metrics, cosines(image_ND, text_ND), lambda images, _: scorer.encode_images(images))


# ---------------------------------------------------------------- open_clip


def _open_clip(config: OpenClipScorer, samples: pa.Table, store: Pictures, stage: Stage, python: str) -> Embedded:
    """`clip-retrieval inference` over tars of our own making (it wants jpg, txt and json side by side); its rows, sorted by uid."""
    scorer = OpenClip(config)
    work, done = stage.state / "clip_retrieval", stage.state / "clip_retrieval.done"
    if not done.exists():
        shutil.rmtree(work, ignore_errors=True)
        (work / "tars").mkdir(parents=True)
        shards = _tars(samples, store, work / "tars")
        job = {
            "do": "inference", "architecture": config.architecture, "input_dataset": str(work / "tars" / f"{{00000..{shards - 1:05d}}}.tar"),
            "output_folder": str(work / "out"), "input_format": "webdataset", "clip_model": f"open_clip:{config.model}/{config.checkpoint}",
            "batch_size": config.batch, "num_prepro_workers": config.workers, "enable_metadata": True, "use_jit": False,
            "wds_number_file_per_input_file": BLOCK, "write_batch_size": len(samples) + BLOCK,
        }  # fmt: skip
        write_json(work / "job.json", job)
        stage.progress("pictures and texts: clip-retrieval reads", len(samples), len(samples))
        run_module(WORKER, work / "job.json", work / "log.txt", python)
        done.touch()
    image, text, uids, score = _gather(work)
    where = {uid: row for row, uid in enumerate(uids)}
    kept = samples.filter(pa.array([uid in where for uid in samples["uid"].to_pylist()]))
    kept = kept.append_column("fitted", pa.array(np.zeros(len(kept), bool)))
    rows = [where[uid] for uid in kept["uid"].to_pylist()]
    return Embedded(kept, image[rows], text[rows], scorer, {}, score[rows], lambda images, _: scorer.encode_images(images))


def _tars(samples: pa.Table, store: Pictures, folder: Path) -> int:
    rows = samples.select(["uid", "caption"]).to_pylist()
    for begin in range(0, len(rows), BLOCK):
        with TarWriter(folder / f"{begin // BLOCK:05d}.tar") as tar:
            for row in rows[begin : begin + BLOCK]:
                tar.add(f"{row['uid']}.jpg", store.read(row["uid"]))
                tar.add(f"{row['uid']}.json", json.dumps({"uid": row["uid"]}).encode())
                tar.add(f"{row['uid']}.txt", row["caption"].encode())
    return -(-len(rows) // BLOCK)


def _gather(work: Path) -> tuple[Vectors, Vectors, list[str], Vectors]:
    """(image, text, uid, score) as clip-retrieval wrote them. Raises LaunchError when it dropped everything or its files do not match."""
    tables = [pq.read_table(file, columns=["uid", "score"]) for file in sorted((work / "out" / "metadata").glob("*.parquet"))]
    uids = [uid for table in tables for uid in table["uid"].to_pylist()]
    image, text = ([np.load(file) for file in sorted((work / "out" / part).glob("*.npy"))] for part in ("img_emb", "text_emb"))
    if not uids or not len(uids) == sum(map(len, image)) == sum(map(len, text)):
        raise LaunchError(
            f"Found {len(uids)} rows and {sum(map(len, image))} image embeddings from clip-retrieval, expected equal numbers above 0; read {work}/log.txt."
        )
    scores = np.concatenate([np.asarray(table["score"].to_numpy(), np.float32) for table in tables])
    return np.concatenate(image).astype(np.float32), np.concatenate(text).astype(np.float32), uids, scores
