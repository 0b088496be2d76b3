"""Language models that reword captions, behind one protocol: SmolLM2 in this process, or any server that speaks OpenAI's protocol.

No silent fall-back: the settings name the writer, and a server that does not answer is a ServiceError.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from vlm_core.data.caption_config import OfflineWriter, OpenAiWriter, Recaption
from vlm_core.data.recaption import Prompt, first_line, parse_rewrite
from vlm_core.errors import ConfigError, ServiceError
from vlm_core.models import packaged

# B prompts, W words of the vocabulary

LINE_END = "Ċ"  # how byte-level vocabularies spell a line feed


class Writer(Protocol):
    """Answers prompts: one line each, '' where the model said nothing or did not come to an end. The same prompt, seed and sampling give the same answer if the model allows it."""

    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]: ...


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

    def __init__(self, sampling: Recaption) -> None:
        self.sampling = sampling
        self.tokenizer, self.model = packaged.smollm2()
        self.line_ends = [index for word, index in self.tokenizer.get_vocab().items() if LINE_END in word]

    @torch.inference_mode()
    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        from transformers import LogitsProcessorList

        tokens = self.tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True, add_special_tokens=False)
        config = self.sampling
        produced = self.model.generate(  # type: ignore[operator]
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], max_new_tokens=config.max_tokens, do_sample=False,
            logits_processor=LogitsProcessorList([RowSampler(seeds, config.temperature, config.top_p)]),
            eos_token_id=[*self.line_ends, self.tokenizer.eos_token_id], pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        added = produced[:, tokens["input_ids"].shape[1] :]
        whole = torch.isin(added, torch.tensor([*self.line_ends, self.tokenizer.eos_token_id])).any(-1).tolist()
        texts = self.tokenizer.batch_decode(added, skip_special_tokens=True)
        return [parse_rewrite(prompt.text, prompt.text + text) if ended else "" for prompt, text, ended in zip(prompts, texts, whole, strict=True)]


class OpenAi:
    """Chat completions of a server; several requests at once, answers in the order of the prompts."""

    def __init__(self, config: OpenAiWriter, sampling: Recaption) -> None:
        import openai

        if not config.model:
            raise ConfigError("Found no writer.model for the writer 'openai', expected the name that the server knows; set writer.model.")
        self.config, self.sampling = config, sampling
        key = os.environ.get(config.api_key_env) or "none"
        self.client = openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.retries)

    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        with ThreadPoolExecutor(self.config.parallel) as pool:
            return list(pool.map(self._ask, prompts, [seed % 2**31 for seed in seeds]))

    def _ask(self, prompt: Prompt, seed: int) -> str:
        import openai

        messages: Any = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        config, sampling = self.config, self.sampling
        try:
            reply = self.client.chat.completions.create(
                model=config.model, messages=messages, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens, seed=seed
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError) as error:
            raise ConfigError(
                f"Found that {config.base_url} refuses model {config.model!r} (HTTP {error.status_code}), expected an answer; correct writer.model or ${config.api_key_env}."
            ) from None
        except openai.APIStatusError as error:
            raise ServiceError(
                f"Found HTTP {error.status_code} from {config.base_url} after {config.retries} retries, expected an answer; try again later."
            ) from None
        except openai.APIConnectionError as error:
            reason = "no answer in time" if isinstance(error, openai.APITimeoutError) else "no connection"
            raise ServiceError(
                f"Found {reason} at {config.base_url}, expected a server that speaks OpenAI's protocol; start it or correct writer.base_url."
            ) from None
        choices = getattr(reply, "choices", None)
        return first_line(choices[0].message.content or "") if choices and choices[0].finish_reason != "length" else ""


def build(config: Recaption) -> Writer:
    match config.writer:
        case OfflineWriter():
            return Offline(config)
        case OpenAiWriter() as settings:
            return OpenAi(settings, config)


def generator(config: Recaption) -> str:
    """Name and version of the model that the settings name, kept with every caption; known without loading it."""
    match config.writer:
        case OfflineWriter():
            return f"smollm2-135m-instruct@{packaged.digest('smollm2')[:12]}"
        case OpenAiWriter() as settings:
            return f"openai:{settings.model}"


def batch_size(config: Recaption) -> int:
    """Prompts that are answered, and kept, together."""
    return config.writer.batch if isinstance(config.writer, OfflineWriter) else 4 * config.writer.parallel
