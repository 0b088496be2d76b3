"""What every distillation term sees and gives."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Embeddings(NamedTuple):
    """One model's view of a batch: unit-norm float32 rows; row i of one belongs to row i of the other."""

    image_BD: Tensor
    text_BD: Tensor
    scale: Tensor  # multiplies the cosine


class DistillTerm(nn.Module, ABC):
    """A term has no parameters of its own unless its paper gives it some; the teacher's tensors carry no gradient."""

    same_width: ClassVar[bool] = True  # the loop projects the student to the teacher's width first

    @abstractmethod
    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        """{name: unweighted scalar}."""
