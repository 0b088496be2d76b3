"""What every distillation term promises, and what the closed forms say."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import Terms
from vlm_core.distill.gradient_kd import contrastive_gradients

KINDS = sorted(Terms.model_fields)
WIDTH = 12


def embeddings(seed: int, rows: int = 6, scale: float = 20.0) -> Embeddings:
    random = torch.Generator().manual_seed(seed)
    image_BD, text_BD = (F.normalize(torch.randn(rows, WIDTH, generator=random, dtype=torch.float64), dim=-1) for _ in range(2))
    return Embeddings(image_BD, text_BD, torch.tensor(scale, dtype=torch.float64))


def build(kind: str) -> DistillTerm:
    torch.manual_seed(0)
    settings = Terms.model_fields[kind].annotation.__args__[0]()
    return importlib.import_module(f"vlm_core.distill.{kind}").build(settings, WIDTH).double()


def total(kind: str, student: Embeddings, teacher: Embeddings) -> Tensor:
    return sum(build(kind)(student, teacher).values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_pairs_in_a_batch_does_not_matter(kind: str) -> None:
    student, teacher, order = embeddings(1), embeddings(2), torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = [Embeddings(side.image_BD[order], side.text_BD[order], side.scale) for side in (student, teacher)]
    torch.testing.assert_close(total(kind, *mixed), total(kind, student, teacher))


@pytest.mark.parametrize("kind", ["feature_kd", "relation_kd", "gradient_kd"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(kind: str) -> None:
    assert total(kind, embeddings(1), embeddings(1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_student_and_stop_there(kind: str) -> None:
    student, teacher = embeddings(1), embeddings(2)
    leaves = [value.requires_grad_() for value in (student.image_BD, student.text_BD)]
    total(kind, student, teacher).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves)
    assert teacher.image_BD.grad is None
    assert teacher.text_BD.grad is None


def test_feature_distance_by_hand() -> None:
    one = Embeddings(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(1.0))
    two = Embeddings(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(1.0))
    term = importlib.import_module("vlm_core.distill.feature_kd").build(Terms().feature_kd, 2)
    assert term(one, two)["feature_kd"].item() == pytest.approx(1.0)  # ((1-0)^2 + (0-1)^2) / 2 for images, 0 for texts


def test_closed_form_gradients_are_those_of_autograd() -> None:
    query_BD, key_BD, scale = embeddings(3)
    query_BD.requires_grad_()
    key_BD.requires_grad_()
    loss = F.cross_entropy(scale * query_BD @ key_BD.T, torch.arange(len(query_BD)))
    expected = torch.autograd.grad(loss, (query_BD, key_BD))
    for got, want in zip(contrastive_gradients(query_BD, key_BD, scale), expected, strict=True):
        torch.testing.assert_close(got, want)
