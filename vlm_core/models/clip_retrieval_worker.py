"""clip-retrieval in a process of its own: `python -m vlm_core.models.clip_retrieval_worker JOB.json`.

It clears the Prometheus registry at import, caches models globally and spawns loggers, so it never shares a process with us. Nothing of ours is
needed here: the interpreter may be that of another environment.

JOB.json is {"do": "inference", "architecture": "", ...arguments of clip_inference} or {"do": "index", ...arguments of clip_index}.
"""

import json
import sys
from pathlib import Path
from typing import Any

SEARCH_EFFORT = 128  # nodes (HNSW) visited per query


def inference(job: dict[str, Any]) -> None:
    architecture = job.pop("architecture")
    if architecture:
        import open_clip

        open_clip.add_model_config(architecture)
    from clip_retrieval.clip_inference.main import main

    main(**job)


def index(job: dict[str, Any]) -> None:
    import faiss
    from clip_retrieval.clip_index import clip_index

    faiss.omp_set_num_threads(job["nb_cores"])
    clip_index(**job)
    for file in sorted(Path(job["index_folder"]).glob("*.index")):
        built = faiss.read_index(str(file))
        inner: Any = faiss.downcast_index(built)
        if hasattr(inner, "hnsw"):  # autofaiss tunes it with a stopwatch: other bytes every time
            inner.hnsw.efSearch = SEARCH_EFFORT
        elif hasattr(inner, "nprobe"):
            inner.nprobe = max(1, inner.nlist // 16)
        faiss.write_index(built, str(file))
        file.with_suffix(".json").unlink()  # timings


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    {"inference": inference, "index": index}[task.pop("do")](task)
