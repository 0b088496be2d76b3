"""What every transfer method is, and all that it may see while it is fitted."""
# B batch, C classes, D joint width, E text width, L tokens, N support pictures, M validation pictures, V views

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.transfer.config import Training

Tokenize = Callable[[list[str]], Tensor]


class Needs(StrEnum):
    """What a method reads besides labels."""

    FEATURES = "cached features"
    TEXT_TOWER = "gradient through the text tower"
    VISION_TOWER = "gradient through the image tower"


class Setting(StrEnum):
    ZERO_SHOT = "zero-shot"
    FEW_SHOT = "few-shot"
    SUPERVISED = "supervised"
    UNSUPERVISED = "unsupervised"
    TEST_TIME = "test-time"


class TextTower(Protocol):
    """The part of a text tower that prompt learning goes through."""

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings (B, L, E), without positions."""
        ...

    def from_embeddings(self, x_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Raw text embeddings (B, D) of token embeddings; the ids say where a text ends."""
        ...


@dataclass(frozen=True)
class Support:
    """The labelled few shots, the validation data and the class names: no test picture is in it, nor a way to one."""

    views_VND: Tensor  # raw image features of the shots; view 0 is the evaluation view, the others are augmented
    labels_N: Tensor
    val_MD: Tensor
    val_labels_M: Tensor
    text_CD: Tensor  # unit text classifier of the first template
    ensemble_CD: Tensor  # unit text classifier of all templates
    classnames: Sequence[str]
    template: str = "a photo of a {}."
    scale: float = 100.0
    tower: TextTower | None = None
    tokenize: Tokenize | None = None
    seed: int = 0

    def classifier(self, templates: str) -> Tensor:
        return self.ensemble_CD if templates == "ensemble" else self.text_CD


class TransferMethod(nn.Module, ABC):
    """A way from features to class scores. It holds its own parameters only; the towers stay frozen and outside.

    The loop calls `loss` over the shots while there is something to train, then `tune` once, then `logits` on pictures it never saw.
    """

    needs: ClassVar[Needs] = Needs.FEATURES
    setting: ClassVar[Setting] = Setting.FEW_SHOT
    training_settings: Training | None = None  # None: nothing learns by gradient

    @abstractmethod
    def logits(self, image_BD: Tensor) -> Tensor:
        """(B, C) class scores of raw image features."""

    def loss(self, image_BD: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Named terms, summed by the loop."""
        return {"cross_entropy": F.cross_entropy(self.logits(image_BD), labels_B)}

    def tune(self, support: Support) -> None:
        """Whatever is solved or searched rather than descended, on shots and validation data. Nothing by default."""
