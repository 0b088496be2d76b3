"""clip-retrieval in a process of its own: `python -m vlm_core.models.clip_retrieval_worker JOB.json`.

It clears the Prometheus registry at import, caches models globally and spawns loggers, so it never shares a process with us. Nothing of ours is
needed here: the interpreter may be that of another environment.

JOB.json is {"do": "inference", "architecture": "", ...arguments of clip_inference} or {"do": "index", ...arguments of clip_index}.
"""

import importlib.util
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
    from clip_retrieval.clip_inference import worker
    from clip_retrieval.clip_inference.main import main

    worker.ClipMapper = exact_scores(worker.ClipMapper)
    main(**job)


def exact_scores(mapper: Any) -> Any:
    """clip-retrieval's mapper, which rounds vectors to float16; this one writes the cosine before that into the metadata, as `score`."""

    class Exact(mapper):
        model_img: Any
        model_txt: Any

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.last: dict[str, Any] = {}
            self.model_img, self.model_txt = self._noted("image", self.model_img), self._noted("text", self.model_txt)

        def _noted(self, name: str, encode: Any) -> Any:
            def call(batch: Any) -> Any:
                self.last[name] = encode(batch)
                return self.last[name]

            return call

        def __call__(self, item: Any) -> Any:
            mapped = super().__call__(item)
            image_BD, text_BD = (self.last[name].float() for name in ("image", "text"))
            scores = (image_BD * text_BD).sum(-1) / (image_BD.norm(dim=-1) * text_BD.norm(dim=-1))
            pairs = zip(mapped["metadata"], scores.tolist(), strict=True)
            return {**mapped, "metadata": [json.dumps({**json.loads(text), "score": score}) for text, score in pairs]}

    return Exact


def part(name: str) -> Any:
    """One module of clip-retrieval without its package, which imports every model library it knows (7 s of processor time)."""
    package = importlib.util.find_spec("clip_retrieval")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("clip_retrieval")
    spec = importlib.util.spec_from_file_location(f"clip_retrieval_{name}", Path(package.origin).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"clip_retrieval.{name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def index(job: dict[str, Any]) -> None:
    import faiss

    faiss.omp_set_num_threads(job["nb_cores"])
    part("clip_index").clip_index(**job)
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
