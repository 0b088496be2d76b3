"""Language models that write captions, behind one protocol: SmolLM2 in this process, or any server that speaks OpenAI's protocol (with pictures, too).

No silent fall-back: the settings name the writer, and a server that does not answer is a ServiceError.
"""

import base64
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import torch
from torch import Tensor

from vlm_core.config import canonical_json
from vlm_core.data.captions.answers import Answer, Price, Request, tokens_bound
from vlm_core.data.captions.config import OpenAiWriter, Recaption
from vlm_core.data.captions.recaption import Prompt, first_line, parse_rewrite
from vlm_core.errors import ConfigError, ServiceError, VlmError
from vlm_core.models import packaged

# B prompts, W words of the vocabulary

REFUSING = {400, 413, 422}  # this request, not this moment: too long, a picture that cannot be read
FREE = 8  # refusals that a run may meet before their share counts
LINE_END = "Ċ"  # how byte-level vocabularies spell a line feed
Pictures = Callable[[str], bytes]  # uid -> JPEG


class Writer(Protocol):
    """Answers requests as they come. The same prompt, seed and sampling give the same answer if the model allows it."""

    @property
    def price(self) -> Price: ...
    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        """`proven`: requests of this shape were answered before, so that a refusal is the caption's own."""
        ...


def sampling(config: Recaption) -> str:
    """What decides an answer beside model, prompt and seed."""
    return canonical_json({"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens})


class RowSampler:
    """Temperature and top-p sampling with a random stream of its own for every row, so that an answer depends on its seed only and not on its neighbours.

    Takes the likeliest word of `log p + Gumbel noise`, which is a draw from p; for `transformers`' greedy search it is a logits processor.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self.draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores_BW: Tensor) -> Tensor:
        if self.temperature == 0:
            return scores_BW
        log_p_BW = (scores_BW.double() / self.temperature).log_softmax(-1)
        sorted_BW, order_BW = log_p_BW.sort(dim=-1, descending=True)
        before_BW = sorted_BW.exp().cumsum(-1) - sorted_BW.exp()  # mass of the likelier words: the first word always stays
        dropped_BW = torch.zeros_like(before_BW, dtype=torch.bool).scatter(-1, order_BW, before_BW >= self.top_p)
        uniform_BW = torch.stack([torch.rand(log_p_BW.shape[-1], generator=draw, dtype=torch.float64) for draw in self.draws])
        return (log_p_BW - (-uniform_BW.log()).log()).masked_fill(dropped_BW, float("-inf"))


class Offline:
    """SmolLM2-135M continues LaCLIP's prompt and stops at the line end."""

    price = Price()

    def __init__(self, batch: int, sampling: Recaption) -> None:
        self.batch, self.sampling = batch, sampling
        self.tokenizer, self.model = packaged.smollm2()
        self.line_ends = [index for word, index in self.tokenizer.get_vocab().items() if LINE_END in word]

    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        rest = iter(requests)
        while part := tuple(itertools.islice(rest, self.batch)):
            begin = time.monotonic()
            answers = self.write([request.prompt for request in part], [request.seed for request in part])
            seconds = (time.monotonic() - begin) / len(part)
            yield from ((request, answer._replace(seconds=seconds)) for request, answer in zip(part, answers, strict=True))

    @torch.inference_mode()
    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Answer]:
        from transformers import LogitsProcessorList

        tokens = self.tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True, add_special_tokens=False)
        config = self.sampling
        produced = self.model.generate(  # type: ignore[operator]
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], max_new_tokens=config.max_tokens, do_sample=False,
            logits_processor=LogitsProcessorList([RowSampler(seeds, config.temperature, config.top_p)]),
            eos_token_id=[*self.line_ends, self.tokenizer.eos_token_id], pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        added = produced[:, tokens["input_ids"].shape[1] :]
        ends = torch.isin(added, torch.tensor([*self.line_ends, self.tokenizer.eos_token_id]))
        lengths = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, added.shape[1]).tolist()
        texts = self.tokenizer.batch_decode(added, skip_special_tokens=True)
        asked = tokens["attention_mask"].sum(-1).tolist()
        return [
            Answer(parse_rewrite(prompt.text, prompt.text + text) if ended else "", tokens_in, tokens_out)
            for prompt, text, ended, tokens_in, tokens_out in zip(prompts, texts, ends.any(-1).tolist(), asked, lengths, strict=True)
        ]


class OpenAi:
    """Chat completions of a server, several requests at once; a prompt that names a picture brings it along as a data URL."""

    def __init__(self, config: OpenAiWriter, sampling: Recaption, pictures: Pictures | None = None, where: str = "writer") -> None:
        import openai

        if not config.model:
            raise ConfigError(f"Found no {where}.model for the {where} 'openai', expected the name that the server knows; set {where}.model.")
        self.config, self.sampling, self.pictures, self.where = config, sampling, pictures, where
        key = os.environ.get(config.api_key_env) or "none"
        self.client = openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.retries)

    @property
    def price(self) -> Price:
        return Price(self.config.price_in, self.config.price_out, self.config.picture_tokens)

    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        """At most `parallel` requests are under way. After a failure no new one is sent, but what is under way is still taken: it is paid for.

        A request that the server refuses (REFUSING) is answered with its reason once another one has been answered. Before that it is held back: if
        nothing is ever answered, or too much is refused, the settings are wrong.
        """
        rest, failed, refusals = iter(requests), None, Refusals(self.config.refused_share, proven)
        with ThreadPoolExecutor(self.config.parallel) as pool:
            running = {pool.submit(self._ask, request): request for request in itertools.islice(rest, self.config.parallel)}
            while running:
                done: set[Future[Answer]] = wait(running, return_when=FIRST_COMPLETED).done
                for future in done:
                    request = running.pop(future)
                    try:
                        yield from refusals.settled(request, future.result())
                    except VlmError as error:
                        failed = failed or error
                    failed = failed or (self._refuses(refusals.last) if refusals.too_many else None)
                    if failed is None and (following := next(rest, None)) is not None:
                        running[pool.submit(self._ask, following)] = following
        if failed is None and refusals.held:
            failed = self._refuses(refusals.last)
        if failed is not None:
            raise failed

    def _ask(self, request: Request) -> Answer:
        begin = time.monotonic()
        config, prompt = self.config, request.prompt
        reply = self._send([{"role": "system", "content": prompt.system}, {"role": "user", "content": self._content(prompt)}], request.seed % 2**31)
        if isinstance(reply, int):
            return Answer("", 0, 0, time.monotonic() - begin, refused=f"refused_{reply}")
        choice = reply.choices[0] if getattr(reply, "choices", None) else None
        whole = choice is not None and choice.finish_reason not in {"length", "content_filter"}
        text = first_line(choice.message.content or "") if choice is not None and whole else ""
        usage = getattr(reply, "usage", None)  # some servers do not count: book the most that it can have been
        tokens_in = usage.prompt_tokens if usage else tokens_bound(prompt) + (config.picture_tokens if prompt.picture else 0)
        return Answer(text, tokens_in, usage.completion_tokens if usage else self.sampling.max_tokens, time.monotonic() - begin)

    def _content(self, prompt: Prompt) -> Any:
        if not prompt.picture or self.pictures is None:
            return prompt.user
        shown = base64.b64encode(self.pictures(prompt.picture)).decode()
        return [{"type": "text", "text": prompt.user}, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{shown}"}}]

    def _send(self, messages: Any, seed: int) -> Any:
        """The reply; None where the server will not speak about this one, or the status with which it refuses it."""
        import openai

        config, sampling = self.config, self.sampling
        try:
            return self.client.chat.completions.create(
                model=config.model, messages=messages, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens, seed=seed
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise self._refuses(str(error.status_code)) from None
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.code in {"content_filter", "content_policy_violation"}:
                return None
            if error.status_code in REFUSING:
                return error.status_code
            raise ServiceError(
                f"Found HTTP {error.status_code} from {config.base_url} after {config.retries} retries, expected an answer; try again later."
            ) from None
        except openai.APIConnectionError as error:
            reason = "no answer in time" if isinstance(error, openai.APITimeoutError) else "no connection"
            raise ServiceError(
                f"Found {reason} at {config.base_url}, expected a server that speaks OpenAI's protocol; start it or correct {self.where}.base_url."
            ) from None

    def _refuses(self, status: str) -> ConfigError:
        config = self.config
        return ConfigError(
            f"Found that {config.base_url} refuses model {config.model!r} (HTTP {status.removeprefix('refused_')}), expected an answer; "
            f"correct {self.where}.model, max_tokens or ${config.api_key_env}."
        )


class Refusals:
    """Which refusals are a caption's own, and when there are too many of them."""

    def __init__(self, share: float, proven: bool) -> None:
        self.share, self.proven = share, proven
        self.asked = self.refused = 0
        self.held: list[tuple[Request, Answer]] = []  # before the first answer nobody knows whose fault they are
        self.last = ""

    def settled(self, request: Request, answer: Answer) -> list[tuple[Request, Answer]]:
        """What is certain now."""
        self.asked += 1
        if answer.refused:
            self.refused, self.last = self.refused + 1, answer.refused
            self.held.append((request, answer))
        self.proven |= not answer.refused
        if not self.proven:
            return []
        known, self.held = self.held, []
        return known if answer.refused else [*known, (request, answer)]

    @property
    def too_many(self) -> bool:
        return self.refused > FREE + self.share * self.asked


def build(config: Recaption) -> Writer:
    """Who rewrites, translates and fuses."""
    return OpenAi(config.writer, config) if isinstance(config.writer, OpenAiWriter) else Offline(config.writer.batch, config)


def generator(config: Recaption) -> str:
    """Name and version of the model that the settings name, kept with every caption; known without loading it."""
    return f"openai:{config.writer.model}" if isinstance(config.writer, OpenAiWriter) else f"smollm2-135m-instruct@{packaged.digest('smollm2')[:12]}"
