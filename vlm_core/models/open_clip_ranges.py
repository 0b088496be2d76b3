"""open_clip models: `clip-retrieval inference` over ranges of pairs, wherever `vlm_core.ranges` puts them.

Each range is a run of its own, over tars of our own making (it wants jpg, txt and json side by side). Every tar holds whole batches, so that no bit of a
vector depends on which pairs lie beside it, however many processes read.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core import ranges
from vlm_core.data.child import run_module
from vlm_core.data.config import OpenClipScorer
from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.shards.tar import TarWriter
from vlm_core.errors import LaunchError
from vlm_core.models.whole_batches import filled
from vlm_core.stage import Stage, write_json

RANGE = 16_384  # pairs of a range: each loads the model anew
TAR = 512  # pairs of a tar, to the next whole batch
WORKER = "vlm_core.models.clip_retrieval_worker"

Arrays = dict[str, NDArray[np.float32]]


def pairs(stage: Stage, config: OpenClipScorer, python: str, uids: list[str], captions: list[str]) -> Arrays:
    """`image` and `text` (N, D), as float16 rounds them, and `score` (N,), the cosine before that; NaN for pairs that clip-retrieval could not read."""
    folder = stage.state / f"open_clip-{hashlib.sha256(json.dumps([uids, captions]).encode()).hexdigest()[:12]}"  # another list has other ranges
    rows = stage.state / f"{folder.name}.parquet"
    pq.write_table(pa.table({"uid": uids, "caption": captions}), rows)
    job = {
        "scorer": config.model_dump(mode="json"), "python": python, "images": str(stage.input("images").absolute()), "rows": str(rows.absolute()),
        "logs": str(stage.state.absolute()),
    }  # fmt: skip
    files = ranges.work(folder, f"{__name__}:worker", job, len(uids), RANGE, stage.progress)
    parts = [dict(np.load(file)) for file in files]
    width = next(part["image"].shape[1] for part in parts)
    if any(part["image"].shape[1] != width for part in parts):
        raise LaunchError(f"Found vectors of several widths in {folder}, expected one; remove that folder and embed again.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---------------------------------------------------------------- in the process that does a range


def worker(job: Mapping[str, Any]) -> ranges.Worker:
    config, store, table = OpenClipScorer.read(job["scorer"]), Pictures(Path(job["images"])), pq.read_table(job["rows"], memory_map=True)

    def work(begin: int, end: int) -> bytes:
        rows, log = table.slice(begin, end - begin).to_pylist(), Path(job["logs"]) / f"open_clip-{begin:012d}.log"
        with tempfile.TemporaryDirectory(prefix="vlm-open-clip-") as folder:
            found = infer(config, rows, store, Path(folder), log, job["python"])
        stream = io.BytesIO()
        np.savez(stream, **found)
        return stream.getvalue()

    return work


def infer(config: OpenClipScorer, rows: list[dict[str, str]], store: Pictures, folder: Path, log: Path, python: str) -> Arrays:
    """One run of clip-retrieval over these pairs (uid, caption)."""
    per_tar = -(-TAR // config.batch) * config.batch
    tars = _tars(rows, store, folder / "tars", config.batch, per_tar)
    job = {
        "do": "inference", "architecture": config.architecture, "input_dataset": str(folder / "tars" / f"{{00000..{tars - 1:05d}}}.tar"),
        "output_folder": str(folder / "out"), "input_format": "webdataset", "clip_model": f"open_clip:{config.model}/{config.checkpoint}",
        "batch_size": config.batch, "num_prepro_workers": min(config.workers, tars), "enable_metadata": True, "use_jit": False,
        "wds_number_file_per_input_file": per_tar, "write_batch_size": (tars + 1) * per_tar,
    }  # fmt: skip
    write_json(folder / "job.json", job)
    run_module(WORKER, folder / "job.json", log, python)
    return _gather(folder / "out", [row["uid"] for row in rows], log)


def _tars(rows: list[dict[str, str]], store: Pictures, folder: Path, batch: int, per_tar: int) -> int:
    folder.mkdir()
    for number, begin in enumerate(range(0, len(rows), per_tar)):
        with TarWriter(folder / f"{number:05d}.tar") as tar:
            part = rows[begin : begin + per_tar]
            for place, row in enumerate(filled(part, batch)):
                name = row["uid"] if place < len(part) else f"filler{place}"
                tar.add(f"{name}.jpg", store.read(row["uid"]))
                tar.add(f"{name}.json", json.dumps({"uid": name}).encode())
                tar.add(f"{name}.txt", row["caption"].encode())
    return -(-len(rows) // per_tar)


def _gather(out: Path, uids: list[str], log: Path) -> Arrays:
    """What clip-retrieval wrote, in the order of the pairs. Raises LaunchError when it dropped everything or its files do not match."""
    tables = [pq.read_table(file, columns=["uid", "score"]) for file in sorted((out / "metadata").glob("*.parquet"))]
    named = [uid for table in tables for uid in table["uid"].to_pylist()]
    image, text = ([np.load(file) for file in sorted((out / part).glob("*.npy"))] for part in ("img_emb", "text_emb"))
    if not named or not len(named) == sum(map(len, image)) == sum(map(len, text)):
        raise LaunchError(
            f"Found {len(named)} rows and {sum(map(len, image))} image embeddings from clip-retrieval, expected equal numbers above 0; read {log}."
        )
    place = {uid: row for row, uid in enumerate(named)}
    rows = np.array([place.get(uid, -1) for uid in uids])
    scores = np.concatenate([np.asarray(table["score"].to_numpy(), np.float32) for table in tables])[rows]
    scores[rows < 0] = np.nan
    return {"image": np.concatenate(image)[rows].astype(np.float32), "text": np.concatenate(text)[rows].astype(np.float32), "score": scores}
