"""Captions written in ranges (`vlm_core.ranges`): where there is another engine, a writer or captioner answers there, else in this process.

A range's answers arrive together, so a process that dies loses its range; a server that is paid for scales by itself and needs no other engine.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlm_core import ranges
from vlm_core.data.captions.answers import Answer, Price, Request
from vlm_core.data.captions.config import OpenAiWriter, Recaption
from vlm_core.data.captions.recaption import Prompt
from vlm_core.data.fetch.stored import Pictures
from vlm_core.models import captioner, llm
from vlm_core.stage import Stage

RANGE = 64  # answers; a multiple of every batch, so that batches are the same wherever they are made


def writer(config: Recaption, stage: Stage) -> llm.Writer:
    """Who rewrites, translates and fuses."""
    return Elsewhere("writer", config, stage, _price(config.writer)) if ranges.elsewhere() else llm.build(config)


def describer(config: Recaption, stage: Stage) -> llm.Writer:
    """Who looks at pictures."""
    assert config.synthetic is not None
    if ranges.elsewhere():
        return Elsewhere("captioner", config, stage, _price(config.synthetic.captioner))
    return captioner.build(config, config.synthetic, Pictures(stage.input("images")).read)


class Elsewhere(NamedTuple):
    """A writer whose requests are answered by other processes."""

    who: str
    config: Recaption
    stage: Stage
    price: Price

    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        asked = list(requests)
        if not asked:
            return
        name = hashlib.sha256("".join(request.key for request in asked).encode()).hexdigest()[:12]
        job = {
            "who": self.who, "proven": proven, "config": self.config.model_dump(mode="json"), "images": str(self.stage.inputs["images"].absolute()) if self.who == "captioner" else "",
            "requests": [[*request[:1], request.prompt._asdict(), *request[2:]] for request in asked],
        }  # fmt: skip
        files = ranges.work(self.stage.state / f"{self.who}-{name}", f"{__name__}:worker", job, len(asked), RANGE, self.stage.progress)
        answers = [Answer(*answer) for file in files for answer in json.loads(file.read_bytes())]
        yield from zip(asked, answers, strict=True)


def _price(who: Any) -> Price:
    return Price(who.price_in, who.price_out, who.picture_tokens) if isinstance(who, OpenAiWriter) else Price()


# ---------------------------------------------------------------- in the process that does a range


def worker(job: Mapping[str, Any]) -> ranges.Worker:
    config = Recaption.read(job["config"])
    requests = [Request(uid, Prompt(**prompt), *rest) for uid, prompt, *rest in job["requests"]]
    answers = _writer(job, config).answer

    def work(begin: int, end: int) -> bytes:
        found = {request.key: answer for request, answer in answers(requests[begin:end], job["proven"])}
        return json.dumps([found[request.key] for request in requests[begin:end]]).encode()

    return work


def _writer(job: Mapping[str, Any], config: Recaption) -> llm.Writer:
    if job["who"] == "writer" or config.synthetic is None:
        return llm.build(config)
    read: Callable[[str], bytes] = Pictures(Path(job["images"])).read
    return captioner.build(config, config.synthetic, read)
