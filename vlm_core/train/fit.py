"""The one training loop under pre-training and distillation: Lightning's Trainer with our checkpoints, resume, records and checks.

    history = fit(Loop(model, step, optim, steps, after_step), loader, settings, folder, report)

Everything that a killed run needs lies in `folder`: steps/step-*.ckpt (weights, optimiser, schedule, position in the data) and metrics.jsonl.
"""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from vlm_core.checkpoint import STEPS, newest_valid, step_of
from vlm_core.errors import CheckpointError, NumericsError
from vlm_core.train import optim
from vlm_core.train.config import Fit, Optim

METRICS = "metrics.jsonl"
Batch = dict[str, Any]
Row = dict[str, float]


class Reporter(Protocol):
    """Where the loop's numbers and progress lines go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...


class Loop(lightning.LightningModule):
    """Sum of weighted terms -> one optimiser step.

    Args:
        model: everything that learns.
        step: batch -> (what is minimised, named terms to log).
        settings: of the optimiser.
        steps: optimiser steps in all.
        seed: random numbers of a step are a function of (seed, step, rank), so a resumed run draws the same ones.
        prepare: batch as loaded -> batch as the step wants it, after it reached the device.
        after_step: called after every optimiser step (clamps).
    """

    def __init__(
        self, model: nn.Module, step: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]], settings: Optim, steps: int, seed: int = 0,
        prepare: Callable[[Batch], Batch] = lambda batch: batch, after_step: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self._step, self._settings, self.steps, self._seed, self._prepare, self._after_step = (
            model,
            step,
            settings,
            steps,
            seed,
            prepare,
            after_step,
        )
        self.strict_loading = False  # locked weights are not in step checkpoints
        self.terms: dict[str, Tensor] = {}
        self.grad_norm = torch.zeros(())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed((self._seed * 1_000_003 + self.global_step) * 64 + self.global_rank)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self._prepare(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, terms = self._step(batch)
        self.terms = {"loss": total.detach(), **{f"term.{name}": value.detach() for name, value in terms.items()}}
        if self.device.type == "cpu":  # elsewhere looking costs a synchronisation: see Records
            check_finite(self.terms, self.global_step, self.trainer)
        return total

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        learning = [value for value in self.parameters() if value.grad is not None]
        self.grad_norm = nn.utils.clip_grad_norm_(learning, self._settings.grad_clip or math.inf)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._after_step()  # before any checkpoint of this step is written

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optim.build(self.model, self._settings, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        locked = {name for name, value in self.named_parameters() if not value.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in locked}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = [name for name, value in self.named_parameters() if value.requires_grad and name not in checkpoint["state_dict"]]
        if missing:
            raise CheckpointError(
                f"Found no weight {missing[0]!r} in the step checkpoint, expected one of this model; remove the state folder beside the output."
            )


class Records(Callback):
    """Every N steps one row: into metrics.jsonl (which a resumed run continues) and to the reporter."""

    def __init__(self, folder: Path, every: int, batch_size: int, report: Reporter) -> None:
        self.folder, self.every, self.batch_size, self.report = folder, every, batch_size, report
        self._since = (time.perf_counter(), 0)

    def on_train_start(self, trainer: lightning.Trainer, loop: lightning.LightningModule) -> None:
        self._since = (time.perf_counter(), trainer.global_step)
        if trainer.is_global_zero:  # rows after the checkpoint that is continued from will be written again
            kept = [row for row in read_rows(self.folder) if row["step"] <= trainer.global_step]
            (self.folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_train_batch_end(self, trainer: lightning.Trainer, loop: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every and step != loop.steps:
            return
        row = {name: float(value) for name, value in mean_over_ranks(loop.terms).items()}
        check_finite({name: torch.tensor(value) for name, value in row.items()}, step - 1, trainer)
        now, (then, before) = time.perf_counter(), self._since
        self._since = (now, step)
        row |= {"lr": loop.lr_schedulers().get_last_lr()[0], "grad_norm": float(loop.grad_norm)}
        row |= {"pairs_per_s": (step - before) * self.batch_size / (now - then)}
        row |= {"scale": float(loop.model.towers.scale.detach())} if hasattr(loop.model, "towers") else {}
        if trainer.is_global_zero:
            with (self.folder / METRICS).open("a") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
            self.report.metrics(row, step)
            self.report.progress(f"loss {row['loss']:.3f}, {row['pairs_per_s']:,.0f} pairs/s, step", step, loop.steps)


def read_rows(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl so far; a last line cut by a crash is left out."""
    file = folder / METRICS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check_finite(terms: Mapping[str, Tensor], step: int, trainer: lightning.Trainer) -> None:
    """Raises NumericsError that names the step, the term and the last good checkpoint."""
    for name, value in sorted(terms.items(), key=lambda item: item[0] == "loss"):  # a term says more than the sum
        if not bool(value.isfinite().all()):
            saved = newest_valid(Path(str(trainer.checkpoint_callback.dirpath))) if trainer.checkpoint_callback else None  # type: ignore[attr-defined]
            last = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
            raise NumericsError(
                f"Found {float(value)} for {name.removeprefix('term.')!r} at step {step + 1}, expected a finite number; lower optim.lr or raise warmup_steps ({last})."
            )


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not (dist.is_available() and dist.is_initialized()):
        return dict(values)
    stacked = torch.stack([value.float() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / dist.get_world_size(), strict=True))


def trainer(settings: Fit, steps: int, folder: Path, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's Trainer without its own logger, bars, samplers or opinions on where to write."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    accelerator = "gpu" if settings.accelerator == "auto" and torch.cuda.is_available() else settings.accelerator.replace("auto", "cpu")
    strategy: str | Strategy = "auto"
    if settings.devices > 1:
        strategy = DDPStrategy(process_group_backend="nccl" if accelerator == "gpu" else "gloo", gradient_as_bucket_view=True)
    saved = ModelCheckpoint(
        folder / "steps", filename=STEPS.replace("*.ckpt", "{step:08d}"), auto_insert_metric_name=False, monitor="step", mode="max", save_top_k=2,
        every_n_train_steps=settings.checkpoint_every, save_on_train_epoch_end=False, enable_version_counter=False,
    )  # fmt: skip
    return lightning.Trainer(
        accelerator=accelerator, devices=settings.devices, strategy=strategy, plugins=[LightningEnvironment()], max_steps=steps, max_epochs=-1,
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true", deterministic=settings.deterministic, logger=False,
        callbacks=[*callbacks, saved], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=folder, inference_mode=False,
    )  # fmt: skip


def fit(loop: Loop, loader: Iterable[Any], settings: Fit, folder: Path, batch_size: int, report: Reporter) -> list[Row]:
    """Train to the end, from the newest valid step checkpoint in `folder` if there is one. Returns the rows of numbers of the whole run.

    The loader gives the batches of all remaining steps and has `state_dict` / `load_state_dict`.
    """
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    saved = newest_valid(folder / "steps")
    if saved is not None:
        report.progress("continued at step", step_of(saved), loop.steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")  # advice on loaders and modes that we chose on purpose
        work = trainer(settings, loop.steps, folder, [Records(folder, settings.log_every, batch_size, report)])
        work.fit(loop, loader, ckpt_path=None if saved is None else str(saved), weights_only=True)
    return read_rows(folder)
