"""A slow copy of a module: after every update it is decay x itself + (1 - decay) x the module.

No gradient, no optimiser, no DDP: its weights are buffers, so a checkpoint holds them and a resumed run is exact (rule 11 of the pre-training sheet).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def ema_update(slow: Tensor, fast: Tensor, decay: float) -> Tensor:
    """MoCo, arXiv 1911.05722, equation 2, in place. Checked by golden `pretraining/moco_infonce`."""
    return slow.mul_(decay).add_(fast, alpha=1 - decay)


class Momentum(nn.Module):
    """Args: module: what is copied; it belongs to someone else and is only read."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [module]  # in a list, so that it is not registered here a second time
        for name, value in module.state_dict().items():
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    @torch.no_grad()
    def update(self, decay: float) -> None:
        for name, value in self._module[0].state_dict().items():
            own = self.get_buffer(name.replace(".", "/"))
            if own.is_floating_point():
                ema_update(own, value, decay)
            else:
                own.copy_(value)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return functional_call(self._module[0], {name.replace("/", "."): value for name, value in self.named_buffers()}, inputs)
