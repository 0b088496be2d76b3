"""The verb `recaption`: every caption of the kept samples; what pages say, and what models write about them, each accepted or rejected with its reason.

An answer's seed is a hash of (uid, run seed, number), plans depend on settings and uids only, and every answer is kept as it comes (`answers.py`): a
killed run goes on where it was, pays nothing twice, and ends with the same bytes. Limits are kept by upper bounds, so they are never exceeded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.config import canonical_json
from vlm_core.data.captions import plan as caption_plan
from vlm_core.data.captions import report as caption_report
from vlm_core.data.captions.answers import Answer, Answers, Cost, Request, affordable
from vlm_core.data.captions.config import Recaption
from vlm_core.data.captions.examples import read_examples
from vlm_core.data.captions.gates import masked
from vlm_core.data.captions.plan import Row, Task
from vlm_core.data.captions.recaption import caption_id, without_opening
from vlm_core.data.sample import CAPTIONS
from vlm_core.data.shards.records import read_table
from vlm_core.models import caption_ranges, captioner, llm
from vlm_core.models.caption_scores import Judge
from vlm_core.stage import Report, Stage

BLOCK = 4_096  # captions that are asked for and judged together; a multiple of every batch
UNSCORED = {"text_score": None, "image_score": None, "added": None, "accepted": False}


class Part(NamedTuple):
    """Tasks that one model answers."""

    tasks: list[Task]
    generator: str
    sampling: str
    writer: Any  # () -> llm.Writer, called when there is something to ask

    def request(self, task: Task) -> Request:
        return Request(task.uid, task.prompt, task.seed, self.generator, self.sampling)


class Written(NamedTuple):
    """A task, what came of it, and what it took."""

    task: Task
    answer: Answer
    row: Row


def recaption(config: Recaption, stage: Stage) -> Report:
    """Writes captions.parquet, and weights.parquet where synthetic captions were accepted."""
    kept = read_table(stage.input("filtered") / "kept.parquet", ("uid", "caption", "lang"), ("merged",)).sort_by("uid").to_pylist()
    pairs = {row["uid"]: row for row in read_table(stage.input("pairs") / "pairs.parquet", ("uid", "captions")).to_pylist()}
    rows = caption_plan.page_captions(kept, pairs)
    store = Answers(stage.state.parent / "answers.sqlite")
    store.keep_only(pairs)
    desk = Desk(config, stage, store, Judge(stage.input("embeddings"), config.gates))
    try:
        for plan in (_from_raw, _from_pictures, _from_both):
            for part in plan(config, stage, kept, desk.written):
                desk.work(part)
    finally:
        store.close()
    table = pa.Table.from_pylist(
        sorted([*rows, *(item.row for item in desk.written)], key=lambda row: (row["uid"], row["origin"], row["caption_id"])), CAPTIONS
    )
    pq.write_table(table, stage.out / "captions.parquet")
    weights = desk.judge.weights([item.row for item in desk.written if item.row["origin"] == "synthetic"], kept)
    if weights is not None:
        pq.write_table(weights, stage.out / "weights.parquet")
    facts = {item.row["caption_id"]: {"seconds": item.answer.seconds, "trace_id": item.answer.trace_id} for item in desk.written}
    spent = caption_report.Spent(desk.spent, desk.paid, desk.unwritten)
    return caption_report.report(stage, kept, table, [(item.task, item.row) for item in desk.written], spent, facts, weights, desk.judge.measure)


# ---------------------------------------------------------------- what is asked of whom


def _from_raw(config: Recaption, stage: Stage, kept: Sequence[Row], written: Sequence[Written]) -> list[Part]:
    tasks = caption_plan.plan_rewrites(config.rewrite, kept, config.seed, read_examples(config.rewrite)) if config.rewrite else []
    tasks += caption_plan.plan_translations(config.translation, kept, config.seed) if config.translation else []
    return [Part(tasks, llm.generator(config), llm.sampling(config), lambda: caption_ranges.writer(config, stage))]


def _from_pictures(config: Recaption, stage: Stage, kept: Sequence[Row], written: Sequence[Written]) -> list[Part]:
    part = config.synthetic
    if part is None:
        return []
    images = stage.input("images")
    sha256 = {row["uid"]: row["sha256"] for row in read_table(images / "status.parquet", ("uid", "sha256")).to_pylist()}
    tasks = caption_plan.plan_descriptions(part, kept, sha256, config.seed)
    return [Part(tasks, captioner.generator(part), captioner.sampling(config, part), lambda: caption_ranges.describer(config, stage))]


def _from_both(config: Recaption, stage: Stage, kept: Sequence[Row], written: Sequence[Written]) -> list[Part]:
    if config.fusion is None:
        return []
    synthetic = [item.row for item in written if item.task.origin == "synthetic"]
    tasks = caption_plan.plan_fusions(config.fusion, synthetic, kept, config.seed)
    return [Part(tasks, llm.generator(config), llm.sampling(config), lambda: caption_ranges.writer(config, stage))]


# ---------------------------------------------------------------- asking and judging


class Desk:
    """Asks within the limits, keeps every answer, judges it."""

    def __init__(self, config: Recaption, stage: Stage, store: Answers, judge: Judge) -> None:
        self.config, self.stage, self.store, self.judge = config, stage, store, judge
        self.written: list[Written] = []
        self.spent, self.paid, self.unwritten = Cost(), Cost(), 0  # what this result cost in all, and in this run

    def work(self, part: Part) -> None:
        """As many tasks of a part as the limits allow, from its beginning, block by block; the rest is counted as unwritten."""
        writer, done = None, 0
        while done < len(part.tasks) and (writer := writer or part.writer()):
            block = part.tasks[done : done + BLOCK]
            count = affordable((writer.price.at_most(part.request(task), self.config.max_tokens) for task in block), self.spent, self.config.limits)
            if not count:
                break
            self._write(part, block[:count], self._ask(writer, part, done, count))
            done += count
        self.unwritten += len(part.tasks) - done

    def _write(self, part: Part, tasks: Sequence[Task], answers: Sequence[Answer]) -> None:
        texts = [without_opening(answer.text) if task.origin in ("synthetic", "fused") else answer.text for task, answer in zip(tasks, answers, strict=True)]
        for task, answer, text, verdict in zip(tasks, answers, texts, self._verdicts(tasks, answers, texts), strict=True):
            self.written.append(Written(task, answer, _row(self.config, part, task, text, answer, verdict)))

    def _verdicts(self, tasks: Sequence[Task], answers: Sequence[Answer], texts: Sequence[str]) -> list[Row]:
        """What the judge says of answers; a request that was refused says it itself."""
        spoken = [place for place, answer in enumerate(answers) if not answer.refused]
        judged = dict(zip(spoken, self.judge([tasks[place] for place in spoken], [texts[place] for place in spoken]), strict=True))
        return [judged.get(place) or {**UNSCORED, "reason": answer.refused} for place, answer in enumerate(answers)]

    def _ask(self, writer: llm.Writer, part: Part, begin: int, count: int) -> list[Answer]:
        """Answers to some tasks of a part, in their order; those of former runs are not asked for again."""
        tasks = part.tasks[begin : begin + count]
        keys = [part.request(task).key for task in tasks]
        known = {key: answer for key in keys if (answer := self.store.find(key)) is not None}
        missing = {key: task for key, task in zip(keys, tasks, strict=True) if key not in known}
        found = begin + len(known)
        proven = bool(missing) and self.store.proven(part.request(next(iter(missing.values()))))
        for number, (request, said) in enumerate(writer.answer(map(part.request, missing.values()), proven), 1):
            answer = said._replace(trace_id=self._trace(request, said))
            self.store.keep(request, answer)
            known[request.key] = answer
            self.paid = self.paid.plus(writer.price.of(answer))
            self.stage.progress(f"captions by {part.generator}", found + number, len(part.tasks))
        answers = [known[key] for key in keys]
        for answer in answers:
            self.spent = self.spent.plus(writer.price.of(answer))
        return answers

    def _trace(self, request: Request, answer: Answer) -> str:
        """Show a share of the calls in MLflow, without pictures and with e-mail addresses, web addresses and telephone numbers masked."""
        if int(hashlib.sha256(f"trace:{request.key}".encode()).hexdigest()[:13], 16) / 16**13 >= self.config.trace_share:
            return ""
        prompt = request.prompt
        asked = {"system": prompt.system, "user": masked(prompt.user)}
        facts = {"uid": request.uid, "generator": request.generator, "prompt_sha256": prompt.sha256, "sampling": request.sampling,
                 "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}  # fmt: skip
        return self.stage.tracker.trace("recaption", asked, masked(answer.text), answer.seconds, facts)


def _row(config: Recaption, part: Part, task: Task, text: str, answer: Answer, verdict: Mapping[str, Any]) -> Row:
    params = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "examples": len(task.prompt.examples),
        "style": task.style,
    }
    return {
        "uid": task.uid, "caption_id": f"{task.origin[0]}{task.number}-{caption_id(task.uid, task.origin, text)}", "origin": task.origin, "text": text,
        "lang": task.lang, "generator": part.generator, "prompt_sha256": task.prompt.sha256, "params": canonical_json(params), "seed": task.seed,
        "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out, **verdict,
    }  # fmt: skip
