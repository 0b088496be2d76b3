"""Whether this machine has the devices that a run asks for, before any data is read."""

import torch

from vlm_core.errors import Incompatible
from vlm_core.train.config import Fit


def require(fit: Fit, gpus: int | None = None) -> None:
    """Raises Incompatible for more processes than there are GPUs, one process each; processors take any number.

    Args:
        fit: how the loop runs.
        gpus: how many there are; none: those of this machine.
    """
    there = torch.cuda.device_count() if gpus is None else gpus
    if fit.accelerator == "gpu" and not there:
        raise Incompatible("Found fit.accelerator=gpu on a machine without a GPU that torch can see, expected one; set fit.accelerator=cpu or auto.")
    if there and fit.accelerator != "cpu" and fit.devices > there:
        raise Incompatible(
            f"Found fit.devices {fit.devices} on a machine with {there} GPU{'s' if there > 1 else ''}, expected a process per GPU at most; "
            f"set fit.devices={there}, or fit.accelerator=cpu."
        )
