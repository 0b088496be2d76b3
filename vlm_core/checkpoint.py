"""Weights on disk: safetensors for what is kept, step checkpoints for what may be continued. Nothing here can run code from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm_core.errors import CheckpointError
from vlm_core.stage import file_sha256

STEPS = "step-*.ckpt"


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Save tensors, names sorted so that equal weights give equal bytes. Returns the SHA-256 of the file."""
    save_file({name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}, path)
    return file_sha256(path)


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Raises CheckpointError when the file is missing, cut, or not the one whose digest is given."""
    if not path.exists():
        raise CheckpointError(f"Found no weights at {path}, expected a safetensors file; give the folder of a trained model.")
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise CheckpointError(f"Found weights with SHA-256 {found[:12]} in {path}, expected {sha256[:12]} as its config.json says; fetch the model again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"Found {path} unreadable ({error}), expected a whole safetensors file; fetch the model again.") from None


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module that has exactly these names and shapes. Raises CheckpointError naming the first difference."""
    own = module.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise CheckpointError(
            f"Found no weight {missing[0]!r} in {where} ({len(missing)} are missing), expected all {len(own)}; use the config it was trained with."
        )
    if extra := sorted(state.keys() - own.keys()):
        raise CheckpointError(
            f"Found the weight {extra[0]!r} in {where} ({len(extra)} too many), expected none of that name; use the config it was trained with."
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"Found {name!r} of shape {list(value.shape)} in {where}, expected {list(own[name].shape)}; use the config it was trained with."
            )
    module.load_state_dict(dict(state))


def newest_valid(folder: Path, before: int | None = None) -> Path | None:
    """The step checkpoint to continue from: the newest (of those before a step) that can be read and holds finite weights; a cut or poisoned one is passed over."""
    for path in sorted((path for path in folder.glob(STEPS) if before is None or step_of(path) < before), key=step_of, reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # noqa: BLE001  torch raises a different class for every way in which a file can be cut
            continue
        if all(bool(value.isfinite().all()) for value in state["state_dict"].values()):
            return path
    return None


def step_of(path: Path) -> int:
    """The optimiser step in the name of a step checkpoint."""
    return int(path.stem.rpartition("-")[2])
