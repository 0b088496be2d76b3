"""How several ranks share the work. Everywhere the mean of the ranks' gradients is the gradient of one process with the whole batch.

ddp      every rank holds all weights; gradients are averaged while backward runs, or behind it where backward runs in parts
fsdp     every rank holds its part of the weights, their gradients and their moments (FSDP2, torch.distributed.fsdp.fully_shard); a block's weights
         come together while it computes. Checkpoints hold whole weights, so that a run may go on with another number of ranks, or with ddp.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlm_core.errors import Incompatible
from vlm_core.models.towers import TwoTower
from vlm_core.train.blocks import blocks_of
from vlm_core.train.body import Body
from vlm_core.train.config import Fit


class Averaging(DDPStrategy):
    """Ranks without a wrapper: the loop averages gradients itself (`average`), so that backward may run as often as it likes."""

    def configure_ddp(self) -> None:
        """Nothing is wrapped: first weights depend on the seed only, so they are equal already."""


class Sharded(Averaging):
    """FSDP2 whose checkpoints are those of one process."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return whole(super().lightning_module_state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        module.load_state_dict({name: _like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            values = [value for group in optimizer.param_groups for value in group["params"]]
            state = {
                place: {name: _like(value, values[place]) if isinstance(value, Tensor) and value.ndim else value for name, value in moments.items()}
                for place, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def strategy(settings: Fit, accelerator: str) -> str | Strategy:
    """Lightning's strategy for these settings."""
    if settings.devices == 1:
        return "auto"
    backend = "nccl" if accelerator == "gpu" else "gloo"
    if settings.strategy == "fsdp":
        return Sharded(process_group_backend=backend)
    if settings.micro_batch is not None:
        return Averaging(process_group_backend=backend)
    # queues and objectives' statistics are equal on every rank because whole batches enter them, those of towers by `share_statistics`; an objective may leave
    # parts of a tower out
    return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True, find_unused_parameters=True, broadcast_buffers=False)


def accelerator_of(settings: Fit) -> str:
    """cpu or gpu."""
    return "gpu" if settings.accelerator == "auto" and torch.cuda.is_available() else settings.accelerator.replace("auto", "cpu")


def require_shared_statistics(towers: TwoTower, settings: Fit) -> None:
    """Raises Incompatible for several processes without GPUs and batch norm that learns: each would have the statistics of its own part of the batch."""
    if settings.devices == 1 or accelerator_of(settings) == "gpu":
        return
    found = [name for name, module in towers.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    if found:
        raise Incompatible(
            f"Found batch norm in the tower ({found[0]}) with fit.devices={settings.devices} on CPUs, expected one process or GPUs, whose statistics are those of the whole "
            "batch; set fit.devices=1, take GPUs (fit.accelerator=gpu), choose a ViT, or lock the tower."
        )


def share_statistics(towers: TwoTower, settings: Fit) -> TwoTower:
    """The towers with batch norm over the batches of all ranks (SyncBatchNorm), where there are several."""
    require_shared_statistics(towers, settings)
    if settings.devices == 1 or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in towers.modules()):
        return towers
    from timm.layers import convert_sync_batchnorm  # torch's own would drop the activation inside timm's

    shared: TwoTower = convert_sync_batchnorm(towers)
    return shared


def shard(body: Body) -> None:
    """Give every rank its part of the weights: blocks one by one, then the rest of the towers and each objective. Single numbers stay whole."""
    single = {value for value in body.parameters() if value.ndim == 0}
    units = [*blocks_of(body.towers), body.towers, *body.objectives.values(), *([body.lesson] if body.lesson is not None else [])]
    for unit in units:
        if any(value.ndim for value in unit.parameters()):
            fully_shard(unit, ignored_params=single)
    for unit in units:
        if isinstance(unit, FSDPModule) and not torch.cuda.is_available():
            unit.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def whole(state: Any) -> Any:
    """A nested state with whole tensors on the CPU in the place of sharded ones; every rank has to ask."""
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def _like(value: Tensor, own: Any) -> Tensor:
    """A whole tensor, shared out as `own` is."""
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements) if isinstance(own, DTensor) else value


@torch.no_grad()
def average(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of the ranks' gradients, for weights that every rank holds; what no rank has a gradient for stays without."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    own = [value for value in parameters if value.requires_grad and not isinstance(value, DTensor)]
    has = torch.tensor([value.grad is not None for value in own], dtype=torch.float32, device=own[0].device)
    dist.all_reduce(has)
    for value, some in zip(own, has.tolist(), strict=True):
        if some:
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            dist.all_reduce(value.grad)
            value.grad /= dist.get_world_size()


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to this norm of them all, whole or sharded. Returns the norm that they had."""
    grads = [value.grad for value in parameters if value.grad is not None]
    kept, parts = [grad for grad in grads if not isinstance(grad, DTensor)], [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    square = torch.stack(torch._foreach_norm(kept)).square().sum() if kept else torch.zeros((), device=parts[0].device)
    if parts:
        of_parts = torch.stack(torch._foreach_norm(parts)).square().sum()
        dist.all_reduce(of_parts)
        square = square + of_parts
    norm = square.sqrt()
    share = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
    for each in (kept, parts):
        if each:
            torch._foreach_mul_(each, share)
    return norm
