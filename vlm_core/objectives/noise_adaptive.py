"""Symmetric InfoNCE whose target is the softer, the less a pair seems to belong together (NLIP, arXiv 2212.07086, noise-adaptive regularisation).

Two Gaussians are fitted to the latest losses of single pairs; the posterior of the one with the lower mean is how likely a pair is clean. There is no
official code. Our choices: the losses are those of a window of steps and not of one epoch, since every pair is then judged by what the model knows now;
until the window is full all pairs count as clean. A pair below the lower mean is clean whatever the posterior says, because a wide second Gaussian
would claim the far left tail.

Checked by hand in `tests/objectives/test_fused.py`.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, W losses of the window, G = 2 Gaussians, D width

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import logits
from vlm_core.objectives.gather import Pairs, exchange, gather
from vlm_core.objectives.queue import push

ROUNDS = 100  # of expectation and maximisation, at most


class Mixture(NamedTuple):
    """Of two Gaussians, the one of lower mean first."""

    mean_G: Tensor
    deviation_G: Tensor
    share_G: Tensor


def fit_mixture(losses_W: Tensor) -> Mixture:
    """Maximum likelihood by expectation and maximisation in float64, from the means of the lower and the upper half."""
    x_W = losses_W.double()
    ordered = x_W.sort().values
    half, floor = len(x_W) // 2, float(x_W.var()) * 1e-6 + 1e-12
    now = Mixture(torch.stack([ordered[:half].mean(), ordered[half:].mean()]), x_W.std().clamp(min=1e-6).repeat(2), x_W.new_full((2,), 0.5))
    for _ in range(ROUNDS):
        part_WG = posterior(x_W, now)
        mass_G = part_WG.sum(0).clamp(min=1e-9)
        mean_G = (part_WG * x_W[:, None]).sum(0) / mass_G
        variance_G = (part_WG * (x_W[:, None] - mean_G) ** 2).sum(0) / mass_G
        then, now = now, Mixture(mean_G, variance_G.clamp(min=floor).sqrt(), mass_G / len(x_W))
        if float((then.mean_G - now.mean_G).abs().max()) < 1e-9:
            break
    order = now.mean_G.argsort()
    return Mixture(*(value[order] for value in now))


def posterior(x_B: Tensor, mixture: Mixture) -> Tensor:
    """(B, 2): how likely each Gaussian made a value."""
    distance_BG = (x_B[:, None] - mixture.mean_G) / mixture.deviation_G
    return (mixture.share_G.log() - mixture.deviation_G.log() - distance_BG**2 / 2).softmax(1)


def gmm_clean_probability(losses_W: Tensor, mixture: Mixture | None = None) -> Tensor:
    """How likely each pair is clean, by a mixture fitted to these losses if none is given."""
    mixture = fit_mixture(losses_W) if mixture is None else mixture
    clean_W = posterior(losses_W.double(), mixture)[:, 0]
    return clean_W.masked_fill(losses_W < mixture.mean_G[0], 1.0).to(losses_W.dtype)


def adaptive_soft_infonce(image_BD: Tensor, text_BD: Tensor, scale: Tensor | float, alpha_B: Tensor, *, chunk_size: int = 0) -> Tensor:
    """Symmetric InfoNCE with target 1 - alpha_i on the own pair and alpha_i / (N - 1) on each other one, of one process."""
    sharp_B, even_B = terms(Pairs(image_BD, text_BD, image_BD, text_BD, 0), scale, chunk_size)
    return mixed(sharp_B, even_B, alpha_B)


def terms(pairs: Pairs, scale: Tensor | float, chunk_size: int = 0) -> tuple[Tensor, Tensor]:
    """For each pair, both ways averaged: -log p of the own partner, and the mean -log p of all others."""
    sides = [_rows(rows, columns, scale, pairs.offset, chunk_size) for rows, columns in ((pairs.image_BD, pairs.text_ND), (pairs.text_BD, pairs.image_ND))]
    both_B2 = (sides[0] + sides[1]) / 2
    return both_B2[:, 0], both_B2[:, 1]


def mixed(sharp_B: Tensor, even_B: Tensor, alpha_B: Tensor) -> Tensor:
    return ((1 - alpha_B) * sharp_B + alpha_B * even_B).mean()


def _rows(rows_BD: Tensor, columns_ND: Tensor, scale: Tensor | float, offset: int, chunk_size: int) -> Tensor:
    if not 0 < chunk_size < len(rows_BD):
        return _chunk(rows_BD, columns_ND, scale, offset)
    begins = range(0, len(rows_BD), chunk_size)
    parts = [checkpoint(_chunk, rows_BD[at : at + chunk_size], columns_ND, scale, offset + at, use_reentrant=False, preserve_rng_state=False) for at in begins]
    return torch.cat(parts)


def _chunk(rows_KD: Tensor, columns_ND: Tensor, scale: Tensor | float, offset: int) -> Tensor:
    log_KN = F.log_softmax(logits(rows_KD, columns_ND, scale), dim=1)
    own_K = log_KN[torch.arange(len(rows_KD), device=rows_KD.device), torch.arange(offset, offset + len(rows_KD), device=rows_KD.device)]
    return -torch.stack([own_K, (log_KN.sum(1) - own_K) / max(len(columns_ND) - 1, 1)], dim=1)


class NoiseAdaptive(Objective):
    def __init__(self, config: menu.NoiseAdaptive) -> None:
        super().__init__()
        self.config = config
        self.losses_W: Tensor
        self.seen: Tensor
        self.steps: Tensor
        self.mixture_3G: Tensor
        self.register_buffer("losses_W", torch.zeros(config.window))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # losses that went in
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # since the window was full
        self.register_buffer("mixture_3G", torch.zeros(3, 2, dtype=torch.float64))  # means, deviations, shares; all zero: not yet fitted

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            sharp_B, even_B = terms(exchange(out.image_BD, out.text_BD), out.scale, self.config.chunk_size)
            if self.training:
                self._remember(sharp_B.detach())
            return {"noise_adaptive": mixed(sharp_B, even_B, self.config.alpha * (1 - self._clean(sharp_B.detach())))}

    def _clean(self, losses_B: Tensor) -> Tensor:
        if not bool(self.mixture_3G.any()):
            return torch.ones_like(losses_B)
        return gmm_clean_probability(losses_B, Mixture(*self.mixture_3G))

    @torch.no_grad()
    def _remember(self, losses_B: Tensor) -> None:
        """The losses of all ranks go into the window; the mixture is fitted when it is full, and again after some steps."""
        losses_N, window = gather(losses_B, with_grad=False), self.config.window
        rows_W, _ = push(self.losses_W, int(self.seen) % window, losses_N[-window:])
        self.losses_W.copy_(rows_W)
        self.seen.add_(len(losses_N))
        if int(self.seen) >= window:
            if int(self.steps) % self.config.refit_every == 0:
                self.mixture_3G.copy_(torch.stack(fit_mixture(self.losses_W)))
            self.steps.add_(1)


def build(config: menu.NoiseAdaptive, towers: TwoTower) -> Objective:
    return NoiseAdaptive(config)
