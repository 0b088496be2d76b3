"""The transfer loop: a method and its shots, trained as the method asks. It never meets a test picture.

Schedule: Dassl's cosine with a constant warm-up (KaiyangZhou/Dassl.pytorch lr_scheduler.py), golden `transfer/warmup_cosine_schedule`.
"""
# B batch, D joint width, N support pictures, V views

import math
from collections.abc import Callable

import torch

from vlm_core.errors import NumericsError
from vlm_core.transfer.base import Support, TransferMethod
from vlm_core.transfer.config import Training


def cosine(lr: float, at: float, length: float) -> float:
    """From lr at 0 down to 0 at `length`."""
    return lr * (1 + math.cos(math.pi * at / length)) / 2


def lr_per_epoch(lr: float, epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5) -> list[float]:
    """Constant warm-up, then the cosine. The warm-up does not shorten the cosine, so the last epoch never reaches 0."""
    return [warmup_lr if epoch < warmup_epochs else cosine(lr, epoch - warmup_epochs, epochs) for epoch in range(epochs)]


def coop_epochs(shots: int) -> int:
    """CoOp's passes by number of shots."""
    return 50 if shots <= 1 else 100 if shots <= 4 else 200


def adapt(method: TransferMethod, support: Support, shots: int, on_epoch: Callable[[int, float], None] | None = None) -> TransferMethod:
    """Train what the method has to train on the shots, then let it solve or search the rest.

    Args:
        method: built from the same support; changed in place.
        support: shots, validation data and class names.
        shots: labelled pictures per class that were asked for; decides the epochs where the settings leave them open.
        on_epoch: told the epoch and its mean loss.

    Raises:
        NumericsError: the loss is not a number.
    """
    settings = method.training_settings
    if settings is not None:
        _descend(method, support, settings, settings.epochs or coop_epochs(shots), on_epoch)
    method.eval()
    with torch.no_grad():
        method.tune(support)
    return method


def _descend(method: TransferMethod, support: Support, settings: Training, epochs: int, on_epoch: Callable[[int, float], None] | None) -> None:
    method.train()
    optimiser = _optimiser(method, settings)
    random = torch.Generator().manual_seed(support.seed)
    views, n = support.views_VND.shape[0], len(support.labels_N)
    size = min(settings.batch, n)
    steps = n // size  # a last, smaller batch is left out, as in CoOp
    rates = lr_per_epoch(settings.lr, epochs, settings.warmup_epochs, settings.warmup_lr)
    for epoch in range(epochs):
        order, total = torch.randperm(n, generator=random), 0.0
        for step in range(steps):
            done = epoch * steps + step
            rate = rates[epoch] if settings.cosine_per == "epoch" else cosine(settings.lr, done, epochs * steps)
            rows_B = order[step * size : (step + 1) * size]
            view_B = torch.randint(views, (size,), generator=random)
            total += _step(method, optimiser, rate, support.views_VND[view_B, rows_B], support.labels_N[rows_B], done)
        if on_epoch is not None:
            on_epoch(epoch, total / steps)


def _step(method: TransferMethod, optimiser: torch.optim.Optimizer, rate: float, image_BD: torch.Tensor, labels_B: torch.Tensor, number: int) -> float:
    for group in optimiser.param_groups:
        group["lr"] = rate
    terms = method.loss(image_BD, labels_B)
    loss = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        values = ", ".join(f"{name} {float(term.detach()):g}" for name, term in terms.items())
        raise NumericsError(f"Found the loss {float(loss.detach()):g} at step {number} ({values}), expected a finite number; lower method.training.lr.")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def _optimiser(method: TransferMethod, settings: Training) -> torch.optim.Optimizer:
    own = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(own, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(own, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay)
