"""The verb `recaption`: every caption of the kept samples, and rewrites of a budgeted share of the raw ones, each accepted or rejected with its reason.

A rewrite's seed is a hash of (uid, run seed, number), batches are cut from a list that only settings and uids decide, and finished batches lie in
`stage.state`: a killed run goes on where it was, and both end with the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.config import canonical_json
from vlm_core.data import recaption as rules
from vlm_core.data.caption_config import Recaption
from vlm_core.data.pool import load_embeddings
from vlm_core.data.recaption import Prompt, Style
from vlm_core.data.sample import CAPTIONS
from vlm_core.errors import MissingInput, SchemaMismatch
from vlm_core.models import llm
from vlm_core.models.scorer import Scorer, load, sentences
from vlm_core.stage import Report, Stage, write_json

SHOWN = 30  # rows of the table that people see


class Task(NamedTuple):
    """One rewrite that is wanted."""

    uid: str
    caption: str
    lang: str
    number: int
    style: Style
    seed: int
    prompt: Prompt


class Scores(NamedTuple):
    """What the gates of meaning look at."""

    text: float
    image: float
    raw_image: float


def recaption(config: Recaption, stage: Stage) -> Report:
    """Writes captions.parquet: raw and page captions as they are, rewrites with prompt, seed, scores and verdict."""
    kept = _table(stage.input("filtered") / "kept.parquet", ["uid", "caption", "lang"])
    pairs = _table(stage.input("pairs") / "pairs.parquet", ["uid", "captions"])
    captions = dict(zip(pairs["uid"].to_pylist(), pairs["captions"].to_pylist(), strict=True))
    rows = [row for sample in kept.sort_by("uid").to_pylist() for row in _page_captions(sample, captions.get(sample["uid"]) or [])]
    tasks = plan(config, kept)
    answers = write_all(config, tasks, stage)
    scored = score(tasks, answers, stage.input("embeddings"))
    written = [_row(config, task, text, scores) for task, text, scores in zip(tasks, answers, scored, strict=True)]
    table = pa.Table.from_pylist(sorted([*rows, *written], key=lambda row: (row["uid"], row["origin"], row["caption_id"])), CAPTIONS)
    pq.write_table(table, stage.out / "captions.parquet")
    return _report(kept, tasks, written, scored, table)


def plan(config: Recaption, kept: pa.Table) -> list[Task]:
    """What is rewritten: captions of the wanted languages that carry no attack, drawn by seed and uid up to the budget, sorted by uid."""
    wanted = [
        row
        for row in kept.to_pylist()
        if (row["lang"] or "").split("-")[0] in config.languages and rules.words(row["caption"]) and not rules.suspicious(row["caption"])
    ]
    drawn = sorted(wanted, key=lambda row: hashlib.sha256(f"{config.seed}:{row['uid']}".encode()).digest())[: config.budget or None]
    tasks = []
    for row in sorted(drawn, key=lambda row: row["uid"]):
        for number in range(config.rewrites):
            seed = rules.row_seed(row["uid"], config.seed, number)
            style = config.styles[(seed + number) % len(config.styles)] if config.rewrites == 1 else config.styles[number % len(config.styles)]
            prompt = rules.make_prompt(row["caption"], style, config.examples, seed)
            tasks.append(Task(row["uid"], row["caption"], row["lang"], number, style, seed, prompt))
    return tasks


def write_all(config: Recaption, tasks: list[Task], stage: Stage) -> list[str]:
    """Answers in the order of the tasks. Finished batches are read back from the state of a killed run."""
    answers: list[str] = []
    writer, size = None, llm.batch_size(config)
    for begin in range(0, len(tasks), size):
        part, file = tasks[begin : begin + size], stage.state / f"answers-{begin:09d}.json"
        if not file.exists():
            writer = writer or llm.build(config)
            write_json(file, writer.write([task.prompt for task in part], [task.seed for task in part]))
        answers += json.loads(file.read_text())
        stage.progress("captions: rewritten", len(answers), len(tasks))
    return answers


def score(tasks: Sequence[Task], answers: Sequence[str], embeddings: Path) -> list[Scores]:
    """Text similarity by MiniLM, and how well raw caption and rewrite fit the stored image vector, by the scorer that made it."""
    if not tasks:
        return []
    scorer: Scorer = load(embeddings)
    image_ND, _, uids, _ = load_embeddings(embeddings)
    row = {uid: index for index, uid in enumerate(uids)}
    missing = [task.uid for task in tasks if task.uid not in row]
    if missing:
        raise SchemaMismatch(
            f"Found no embedding of {missing[0]} ({len(missing)} samples) in {embeddings}, expected one for every kept sample; run 'vlm embed' again."
        )
    image_TD = np.asarray(image_ND[[row[task.uid] for task in tasks]], np.float32)
    captions = [task.caption for task in tasks]
    similarity = (sentences()(captions) * sentences()(answers)).sum(1).tolist()
    image, raw = ((image_TD * scorer.encode_texts(texts)).sum(1).tolist() for texts in (answers, captions))
    return [Scores(*values) for values in zip(similarity, image, raw, strict=True)]


def _row(config: Recaption, task: Task, text: str, scores: Scores) -> dict[str, Any]:
    reason = rules.judge_text(text, task.prompt, config.gates) or rules.judge_scores(*scores, config.gates)
    params = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens, "examples": config.examples, "style": task.style}
    return {
        "uid": task.uid, "caption_id": f"r{task.number}-{rules.caption_id(task.uid, 'rewritten', text)}", "origin": "rewritten", "text": text, "lang": task.lang,
        "generator": llm.generator(config), "prompt_sha256": task.prompt.sha256, "params": canonical_json(params), "seed": task.seed,
        "text_score": round(scores.text, 6), "image_score": round(scores.image, 6), "accepted": not reason, "reason": reason,
    }  # fmt: skip


def _page_captions(sample: dict[str, Any], captions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The raw caption, and what else the page says about the picture; a further caption that looks like an attack is kept as rejected."""
    raw = {"text": sample["caption"], "origin": captions[0]["origin"] if captions else "alt", "lang": sample["lang"]}
    rows = []
    for number, caption in enumerate([raw, *(other for other in captions if other["text"] != raw["text"])]):
        reason = rules.suspicious(caption["text"]) if number else ""
        rows.append({
            "uid": sample["uid"], "caption_id": f"p{number}-{rules.caption_id(sample['uid'], caption['origin'], caption['text'])}", "accepted": not reason, "reason": reason,
            "generator": "", **caption,
        })  # fmt: skip
    return rows


def _table(file: Path, columns: list[str]) -> pa.Table:
    if not file.exists():
        raise MissingInput(f"Found no file {file}, expected a table with {', '.join(columns)}; run the stage that makes it first.")
    return pq.read_table(file, columns=columns)


def _report(kept: pa.Table, tasks: list[Task], written: list[dict[str, Any]], scores: list[Scores], table: pa.Table) -> Report:
    reasons = Counter(row["reason"] for row in written if not row["accepted"])
    accepted = sum(row["accepted"] for row in written)
    shown = [
        {
            "raw": task.caption, "rewritten": row["text"], "verdict": "accepted" if row["accepted"] else row["reason"], "style": task.style,
            "text score": round(value.text, 3), "image score": round(value.image, 3), "raw image score": round(value.raw_image, 3),
        }
        for task, row, value in list(zip(tasks, written, scores, strict=True))[:SHOWN]
    ]  # fmt: skip
    metrics = {"accepted_share": accepted / len(written)} if written else {}
    if accepted:
        metrics |= {"text_score_mean": float(np.mean([row["text_score"] for row in written if row["accepted"]]))}
    return Report(
        counts={"in": len(kept), "captions": len(table), "rewritten": len(written), "accepted": accepted, **{f"rejected.{name}": n for name, n in sorted(reasons.items())}},
        metrics=metrics,
        tables={"raw and rewritten": shown, "rejected by reason": [{"reason": name, "rewrites": n} for name, n in reasons.most_common()]},
        catalog={"captions": table},
    )  # fmt: skip
