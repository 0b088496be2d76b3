"""AdamW, its parameter groups and its schedule, for every loop."""

import math
from typing import Any

import torch
from torch import nn

from vlm_core.train.blocks import blocks_of
from vlm_core.train.config import Fit, Optim

# Matrices that stand for single tokens or positions: no decay (rule 7 of the pre-training sheet)
UNDECAYED = frozenset(
    {"class_embedding", "positional_embedding", "cls_emb", "latent", "position_embeddings", "token_type_embeddings", "relative_position_bias_table"}
)


BELOW = frozenset({
    "conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "conv_stem", "stem", "class_embedding", "positional_embedding", "token_embedding", "ln_pre", "patch_embed",
    "pos_embed", "cls_token", "norm_pre", "embeddings", "cls_emb",
})  # fmt: skip  # parts of towers that come before the first block
POOLS = frozenset({"attnpool", "attn_pool"})  # behind the last block, positions of its own


def groups(module: nn.Module, config: Optim) -> list[dict[str, Any]]:
    """Trainable parameters by decay and rate. Not decayed: 1-D and scalars, biases, gains, class and position tokens, log scale.

    Scalars stand apart, since they stay whole where other weights are sharded.
    """
    shares = layer_shares(module, config.layer_decay) if config.layer_decay is not None else {}
    found: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, value in module.named_parameters():
        if value.requires_grad:
            decayed = value.ndim >= 2 and not UNDECAYED & set(name.split("."))
            share = shares.get(value, 1.0) * config.rates.get(part_of(name), 1.0)
            found.setdefault((not decayed, value.ndim == 0, share), []).append(value)
    return [
        {"params": values, "weight_decay": 0.0 if free else config.weight_decay, "lr": config.lr * share}
        for (free, _, share), values in sorted(found.items(), key=lambda item: item[0])
    ]


def part_of(name: str) -> str:
    """Which part of the model a weight belongs to: `towers.text.blocks.0.weight` -> text."""
    return name.removeprefix("towers.").partition(".")[0]


def layer_shares(module: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Rate of a tower's parameter / highest rate: decay^k in the k-th block from above, one power more below the blocks, 1 above them (BEiT, arXiv 2106.08254)."""
    shares: dict[nn.Parameter, float] = {}
    towers: Any = getattr(module, "towers", module)
    for tower in (towers.image, towers.text):
        blocks = list(blocks_of(tower))
        for height, block in enumerate(reversed(blocks), 1):
            shares |= {value: decay**height for value in block.parameters()}
        for name, value in tower.named_parameters():
            parts = set(name.split("."))
            if blocks and value not in shares and parts & BELOW and not parts & POOLS:
                shares[value] = decay ** (len(blocks) + 1)
    return shares


def share_of_lr(step: int, steps: int, config: Optim) -> float:
    """Linear from 1/warmup to 1, then half a cosine or a line to the floor at the last step, tenths at milestones, or 1 with a line to 0 in the cool-down.

    Step counts from 0.
    """
    warmup = warmup_of(steps, config)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "steps":
        return 0.1 ** sum(step >= round(at * steps) for at in config.milestones)
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    else:
        falls = steps - warmup if config.schedule == "linear" else round(config.cooldown_share * steps)
        left = min((steps - step) / max(falls, 1), 1.0)
    return config.floor + (1 - config.floor) * left


def warmup_of(steps: int, config: Optim) -> int:
    """Steps of the warm-up in a run of so many."""
    return min(config.warmup_steps, steps // 5) if config.warmup_share is None else round(config.warmup_share * steps)


def settled_of(steps: int, config: Optim) -> int:
    """Steps after which embeddings ought to differ from each other: the warm-up, and a quarter of the run at least."""
    return max(warmup_of(steps, config), steps // 4)


def steps_of(fit: Fit, batch_size: int, steps_per_epoch: int) -> int:
    """Optimiser steps of a run, at least one."""
    return steps_per_epoch * fit.epochs if fit.samples is None else max(round(fit.samples / batch_size), 1)


def build(module: nn.Module, config: Optim, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(groups(module, config), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, foreach=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_lr(step, steps, config))
