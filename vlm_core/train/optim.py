"""AdamW, its parameter groups and its schedule, for every loop."""

import math
from typing import Any

import torch
from torch import nn

from vlm_core.train.config import Fit, Optim

# Matrices that stand for single tokens or positions: no decay (rule 7 of the pre-training sheet)
UNDECAYED = ("class_embedding", "positional_embedding", "cls_emb")


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed, and not (1-D and scalars, biases, gains, class and position tokens, log scale)."""
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, value in module.named_parameters():
        if value.requires_grad:
            (free if value.ndim < 2 or name.rpartition(".")[2] in UNDECAYED else decayed).append(value)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def share_of_lr(step: int, steps: int, config: Optim) -> float:
    """Linear from 1/warmup to 1, then half a cosine or a line to 0 at the last step, or 1 with a line to 0 in the cool-down. Step counts from 0."""
    warmup = warmup_of(steps, config)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    falls = steps - warmup if config.schedule == "linear" else round(config.cooldown_share * steps)
    return min((steps - step) / max(falls, 1), 1.0)


def warmup_of(steps: int, config: Optim) -> int:
    """Steps of the warm-up in a run of so many."""
    return min(config.warmup_steps, steps // 5) if config.warmup_share is None else round(config.warmup_share * steps)


def steps_of(fit: Fit, batch_size: int, steps_per_epoch: int) -> int:
    """Optimiser steps of a run, at least one."""
    return steps_per_epoch * fit.epochs if fit.samples is None else max(round(fit.samples / batch_size), 1)


def build(module: nn.Module, config: Optim, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(groups(module, config.weight_decay), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, foreach=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_lr(step, steps, config))
