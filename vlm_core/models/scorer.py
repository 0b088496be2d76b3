"""Image-text scorers: unit vectors whose dot product is the score. One protocol; the recipe says which one runs, nothing falls back.

offline    EfficientNet-Lite0 and MiniLM from their packages. Scores, averaged: the name bridge (cosine of the caption with the text vectors of the likeliest
           ImageNet names, weighted by probability) and LiT heads (arXiv 2111.07991: locked towers, small heads fitted on pairs of trusted hosts in seconds).
           The heads are cross-fitted: each of two sees one half of the pictures, and a sample is scored by the one that has not seen it. With a single pair
           of heads the filter would keep what was fitted (score .45) and drop what was not (.25).
open_clip  any open_clip model by name and checkpoint.
model      a model that the platform trained (`trained_scorer`).

Scores of two scorers are not comparable: choose by fractions, or calibrate for one `version`.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vlm_core import stage
from vlm_core.data.config import OfflineScorer, OpenClipScorer
from vlm_core.errors import CheckpointError, ConfigError, Incompatible, MissingInput
from vlm_core.models import packaged
from vlm_core.models.packaged import name_bridge

# N images or texts, K ImageNet names, D joint width

Vectors = NDArray[np.float32]
BF16_COSINE = 0.99  # bfloat16 features must agree at least so well with float32 ones (0.9965 measured)
HEAD_WIDTH = 256


class Scorer(Protocol):
    """Unit-norm float32 rows; `images @ texts.T` is the score."""

    name: str

    @property
    def dim(self) -> int: ...
    @property
    def version(self) -> str:
        """Digest of everything that changes a score: weights, transform, precision."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors: ...
    def encode_texts(self, texts: Sequence[str]) -> Vectors: ...
    def save(self, folder: Path) -> None:
        """Write scorer.json (and small weights) so that `load(folder)` scores the same."""
        ...


def mean_of_cosines(*parts_ND: Tensor) -> Tensor:
    """Unit-norm concatenation of unit-norm rows; the dot product of two such rows is the mean of their parts' cosines."""
    return torch.cat(parts_ND, dim=-1) / len(parts_ND) ** 0.5


def cross_fitted(common_ND: Tensor, heads_NFD: Tensor, fold_N: Tensor) -> Tensor:
    """Unit-norm rows of the common part and of the block of each row's fold, zeros in the other blocks.

    Two rows of one fold f meet in the common part and in block f only; a row of `mean_of_cosines(common, *blocks)` meets every row on one scale.
    """
    own_NF1 = F.one_hot(fold_N, heads_NFD.shape[1]).unsqueeze(-1).to(heads_NFD.dtype)
    return torch.cat([common_ND, (heads_NFD * own_NF1).flatten(1)], dim=-1) / 2**0.5


def square(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """RGB, white bars to a square, bicubic to size_px."""
    image = image.convert("RGB")
    side = max(image.size)
    if image.size != (side, side):
        canvas = Image.new("RGB", (side, side), "white")
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    return np.array(image.resize((size_px, size_px), Image.Resampling.BICUBIC))


class Sentences:
    """Frozen MiniLM: `texts -> (N, 384)` unit-norm vectors."""

    def __init__(self) -> None:
        self.tokenizer, self.model, _ = packaged.minilm()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return packaged.sentence_vectors(self.tokenizer, self.model, texts)

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens (N,) that the model reads of each text."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=packaged.MINILM_CONTEXT)["input_ids"]
        return np.array([len(ids) for ids in tokens], np.int64)


def device_of(asked: str) -> str:
    """cpu or cuda, for auto, cpu or cuda. Raises ConfigError."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "Found no GPU for scorer.device=cuda, expected one that torch can use; set scorer.device=auto, and on Ray ask for one with VLM_RANGE_GPUS."
        )
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


@functools.cache
def sentences() -> Sentences:
    """One MiniLM for the whole process: the scorer and the gates of rewriting share it."""
    return Sentences()


@functools.cache
def _name_vectors() -> Tensor:
    return sentences()(packaged.imagenet_names())


class Heads(nn.Module):
    """What is learnt on top of the locked towers: 1280-512-256 for pictures, 384-256 for texts."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.LayerNorm(packaged.EFFICIENTNET_WIDTH), nn.Linear(packaged.EFFICIENTNET_WIDTH, 512), nn.GELU(), nn.Dropout(0.5), nn.Linear(512, HEAD_WIDTH)
        )
        self.text = nn.Linear(packaged.MINILM_WIDTH, HEAD_WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())


def fit_heads(features_NE: Tensor, texts_NE: Tensor, seed: int, epochs: int, batch: int = 256, lr: float = 1e-3) -> Heads:
    """Contrastive heads on cached tower outputs; a pure function of its arguments on one machine.

    Half of the units dropped and features scaled by 1 + 0.3 N(0, 1): worth .85 -> .87 AUC on captions that were not fitted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads, count = Heads().train(), len(features_NE)
        optimiser = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=1e-2)
        batch = min(batch, count)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs * (count // batch))
        for _ in range(epochs):
            order = torch.randperm(count)
            for begin in range(0, count - batch + 1, batch):
                rows = order[begin : begin + batch]
                noisy_BE = features_NE[rows] * (1 + 0.3 * torch.randn(batch, features_NE.shape[1]))
                image_BD, text_BD = F.normalize(heads.image(noisy_BE), dim=-1), F.normalize(heads.text(texts_NE[rows]), dim=-1)
                logits_BB = heads.log_scale.exp().clamp(max=100) * image_BD @ text_BD.T
                same = torch.arange(batch)
                loss = (F.cross_entropy(logits_BB, same) + F.cross_entropy(logits_BB.T, same)) / 2
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return heads.eval().requires_grad_(False)


class Offline:
    """The packaged towers. Without heads it is the name bridge alone (384 wide); `with_heads` gives the full scorer (896 wide).

    heads[f] has not seen the pictures of fold f.
    """

    name = "offline"

    def __init__(self, size_px: int, names: int, precision: str, heads: tuple[Heads, ...] = (), device: str = "cpu") -> None:
        self.size_px, self.names, self.heads, self.device = size_px, names, heads, device
        self.tower = packaged.efficientnet_lite0().to(memory_format=torch.channels_last)
        self.precision = _probe_bf16(self.tower, size_px) if precision == "auto" else precision
        self.tower, self.names_KE = self.tower.to(device), _name_vectors().to(device)

    @property
    def dim(self) -> int:
        return packaged.MINILM_WIDTH + HEAD_WIDTH * len(self.heads)

    @property
    def version(self) -> str:
        towers = [packaged.digest("efficientnet_lite0"), packaged.digest("minilm")]
        return hashlib.sha256(json.dumps([self.name, towers, self.size_px, self.names, self.precision, _heads_digest(self.heads)]).encode()).hexdigest()

    def with_heads(self, *heads: Heads) -> "Offline":
        self.heads = heads
        return self

    def trunk(self, images: Sequence[Image.Image], batch: int = 64) -> tuple[Tensor, Tensor]:
        """(features (N, 1280), name bridge (N, 384)): everything that looks at pixels, so it is worth keeping.

        Each batch is one thread's, and the batches share the cores: equal bytes on any number of cores, and no thread waits for another.
        """
        cores = torch.get_num_threads()
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(self._looked_at, (images[begin : begin + batch] for begin in range(0, len(images), batch))))
        torch.set_num_threads(cores)  # a part of what the threads set is everybody's
        features = torch.cat([torch.empty(0, packaged.EFFICIENTNET_WIDTH), *(feature_BE for feature_BE, _ in parts)])
        return features, torch.cat([torch.empty(0, packaged.MINILM_WIDTH), *(bridge_BE for _, bridge_BE in parts)])

    @torch.inference_mode()
    def _looked_at(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        pixels = np.stack([square(image, self.size_px) for image in images])
        images_B3HW = packaged.pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            feature_BE = self.tower.features(images_B3HW)  # type: ignore[operator]
        feature_BE = feature_BE.float()
        return feature_BE.cpu(), name_bridge(self.tower._fc(feature_BE), self.names_KE, self.names).cpu()  # type: ignore[operator]

    def images_of(self, features_NE: Tensor, bridge_NE: Tensor, fold_N: Tensor | None = None) -> Vectors:
        """Vectors of tower outputs; with folds those of samples that may have been fitted, without those of questions."""
        return self._join(bridge_NE, [(head.image, features_NE) for head in self.heads], fold_N)

    def texts_of(self, texts_NE: Tensor, fold_N: Tensor | None = None) -> Vectors:
        return self._join(texts_NE, [(head.text, texts_NE) for head in self.heads], fold_N)

    @torch.inference_mode()
    def _join(self, common_NE: Tensor, parts: list[tuple[nn.Module, Tensor]], fold_N: Tensor | None) -> Vectors:
        blocks = [F.normalize(head(input_NE), dim=-1) for head, input_NE in parts]
        if fold_N is None or not blocks:
            return mean_of_cosines(common_NE, *blocks).numpy()
        return cross_fitted(common_NE, torch.stack(blocks, dim=1), fold_N).numpy()

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        return self.images_of(*self.trunk(images))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return self.texts_of(sentences()(texts))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        about = {"scorer": self.name, "version": self.version, "dim": self.dim, "size_px": self.size_px, "names": self.names, "precision": self.precision}
        if self.heads:
            save_file(nn.ModuleList(self.heads).state_dict(), folder / "scorer.safetensors")
        stage.write_json(folder / "scorer.json", about)


class OpenClip:
    """An open_clip model by name, with a checkpoint file or the tag of published weights."""

    def __init__(self, config: OpenClipScorer) -> None:
        import open_clip

        self.name, self.config = f"open_clip:{config.model}", config
        self.weights_sha256 = checkpoint_sha256(config)
        if config.architecture:
            open_clip.add_model_config(_existing(config.architecture, "the JSON file of the architecture"))
        try:
            model, _, self.preprocess = open_clip.create_model_and_transforms(config.model, pretrained=config.checkpoint)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"Found the model {config.model!r} with {config.checkpoint!r}, expected weights that fit it; choose another ({reason})"
            ) from None
        self.model, self.tokenizer = model.eval(), open_clip.get_tokenizer(config.model)
        self._dim = 0
        self._dim = len(self.encode_texts(["a"])[0])

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def version(self) -> str:
        return hashlib.sha256(f"{self.name} {self.weights_sha256} {self.preprocess}".encode()).hexdigest()

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        step = self.config.batch
        parts = [torch.stack([self.preprocess(image) for image in images[i : i + step]]) for i in range(0, len(images), step)]
        rows = [F.normalize(self.model.encode_image(part).float(), dim=-1) for part in parts]
        return torch.cat([torch.empty(0, self.dim), *rows]).numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        step = self.config.batch
        rows = [F.normalize(self.model.encode_text(self.tokenizer(list(texts[i : i + step]))).float(), dim=-1) for i in range(0, len(texts), step)]
        return torch.cat(rows).numpy() if rows else np.empty((0, self.dim), np.float32)

    def save(self, folder: Path) -> None:
        about = {"scorer": self.name, "version": self.version, "dim": self.dim, "model": self.config.model, "weights_sha256": self.weights_sha256}
        stage.write_json(folder / "scorer.json", about)


def load(embeddings: Path) -> Scorer:
    """The scorer that made an embeddings folder, so that new texts and pictures meet its vectors.

    Raises:
        MissingInput: no scorer.json, or the open_clip checkpoint has gone.
        CheckpointError: what loads now does not score like what made the folder.
    """
    about_file = embeddings / "scorer.json"
    if not about_file.exists():
        raise MissingInput(f"Found no scorer.json in {embeddings}, expected the folder that 'vlm embed' makes; run it first.")
    about: dict[str, Any] = json.loads(about_file.read_text())
    scorer = _load(embeddings, about)
    if scorer.version != about["version"]:
        raise CheckpointError(
            f"Found the scorer {scorer.name} of version {scorer.version[:12]}, expected {about['version'][:12]} that made {embeddings}; run 'vlm embed' again."
        )
    return scorer


def _load(embeddings: Path, about: dict[str, Any]) -> Scorer:
    if about["scorer"] == Offline.name:
        return _load_offline(embeddings, about)
    if about["scorer"].startswith("model:"):
        from vlm_core.models import trained_scorer

        return trained_scorer.reload(embeddings)
    return OpenClip(_open_clip_settings(embeddings))


def checkpoint_sha256(config: OpenClipScorer) -> str:
    """Digest of the checkpoint file; for published weights their tag, which names them."""
    path = Path(config.checkpoint)
    if path.is_file():
        return stage.file_sha256(path)
    if "/" in config.checkpoint or path.suffix:
        _existing(config.checkpoint, "the checkpoint of the scorer")
    return f"tag:{config.checkpoint}"


def _load_offline(embeddings: Path, about: dict[str, Any]) -> Offline:
    from safetensors.torch import load_file

    heads = nn.ModuleList(Heads() for _ in range((about["dim"] - packaged.MINILM_WIDTH) // HEAD_WIDTH))
    if len(heads):
        heads.load_state_dict(load_file(_existing(str(embeddings / "scorer.safetensors"), "the fitted heads")))
    heads.eval().requires_grad_(False)
    return Offline(about["size_px"], about["names"], about["precision"], tuple(heads))  # type: ignore[arg-type]


def _open_clip_settings(embeddings: Path) -> OpenClipScorer:
    """Where the checkpoint lies is said by the record of the run, not by the data."""
    record = stage.record_of(embeddings) / "spec.json"
    if not record.exists():
        raise MissingInput(f"Found no {record}, expected the settings that name the open_clip checkpoint; run 'vlm embed' on this machine.")
    return OpenClipScorer.read(json.loads(record.read_text())["config"]["scorer"])


def _existing(path: str, what: str) -> Path:
    if not Path(path).is_file():
        raise MissingInput(f"Found no file {path}, expected {what}; correct the path in the settings.")
    return Path(path)


def _heads_digest(heads: tuple[Heads, ...]) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(nn.ModuleList(heads).state_dict().items()):
        hashed.update(name.encode() + value.numpy().tobytes())
    return hashed.hexdigest()


def _probe_bf16(tower: nn.Module, size_px: int) -> str:
    """bf16 where the processor has instructions for it (4x faster there) and the features agree, else 32.

    Not chosen by a stopwatch: the answer, and with it the bytes of the embeddings, would change with the load of the machine.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return "32"
    noise_B3HW = torch.randn(4, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = tower.features(noise_B3HW)  # type: ignore[operator]
        with torch.autocast("cpu", torch.bfloat16):
            quick = tower.features(noise_B3HW).float()  # type: ignore[operator]
    return "bf16" if float(F.cosine_similarity(exact, quick).min()) >= BF16_COSINE else "32"


def build(config: OfflineScorer | OpenClipScorer) -> Scorer:
    """The scorer that the settings name; the offline one without its heads, which `vlm embed` fits."""
    match config:
        case OfflineScorer():
            return Offline(config.size_px, config.names, config.precision)
        case OpenClipScorer():
            return OpenClip(config)
    raise Incompatible(f"Found the scorer settings {type(config).__name__}, expected offline or open_clip; choose one.")
