"""The one training loop under pre-training and distillation: Lightning's Trainer with our checkpoints, resume, records and checks.

    history = fit(Loop(body, optim, settings, steps, seed, prepare), loader, folder, batch_size, report)

Everything that a killed run needs lies in `folder`: steps/step-*.ckpt (weights and their average, queues, optimiser, schedule, position in the data) and
metrics.jsonl.
"""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from vlm_core.checkpoint import STEPS, newest_valid, step_of
from vlm_core.errors import CheckpointError, DataError
from vlm_core.models.momentum import Momentum
from vlm_core.train import grad_cache, optim, ranks, watch
from vlm_core.train.body import Batch, Body
from vlm_core.train.config import Fit, Optim
from vlm_core.train.diverge import Explosion, check_finite

METRICS = "metrics.jsonl"
Row = dict[str, float]


class Reporter(Protocol):
    """Where the loop's numbers and progress lines go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, what: str, done: int, total: int, every_s: float = 2.0) -> None: ...


class Loop(lightning.LightningModule):
    """Sum of weighted terms -> one optimiser step.

    Args:
        body: everything that learns.
        settings: of the optimiser.
        how: of the loop.
        steps: optimiser steps in all.
        seed: random numbers of a step are a function of (seed, step, rank), so a resumed run draws the same ones.
        prepare: batch as loaded -> batch as the body wants it, after it reached the device.
    """

    def __init__(self, body: Body, settings: Optim, how: Fit, steps: int, seed: int = 0, prepare: Callable[[Batch], Batch] = lambda batch: batch) -> None:
        super().__init__()
        self.model, self.steps = body, steps
        self._settings, self._how, self._seed, self._prepare = settings, how, seed, prepare
        self.strict_loading = False  # locked weights are not in step checkpoints
        self.average: Momentum | None = None  # of the weights
        self.terms: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}  # of the gradients of terms
        self.grad_norm = torch.zeros(())
        self.flops: float | None = None  # of a step of this rank, where a GPU's use of its peak is asked for
        self.looked: list[tuple[Any, Tensor]] = []  # (uids, which of their pictures are no numbers) that nobody has looked at yet
        self._final: dict[str, Tensor] | None = None

    def configure_model(self) -> None:
        if self._how.strategy == "fsdp" and self._how.devices > 1:
            ranks.shard(self.model)
        if self._settings.ema is not None:
            self.average = Momentum(self.model.towers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed((self._seed * 1_000_003 + self.global_step) * 64 + self.global_rank)
        self.model.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Done when a batch starts: a step may run backward more than once."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = self._prepare(batch)
        pictures = batch["images"] if "images" in batch else batch["image_features"]
        self.looked.append((batch.get("uids", batch.get("rows")), ~pictures.flatten(1).isfinite().all(1)))
        if self.device.type == "cpu":  # elsewhere looking costs a synchronisation: see Records
            self.check_pictures()
        return batch

    def check_pictures(self) -> None:
        """Raises DataError for a picture that holds values which are no numbers."""
        looked, self.looked = self.looked, []
        for uids, wrong_B in looked:
            if bool(wrong_B.any()):
                rows = wrong_B.nonzero().flatten().tolist()
                first = uids[rows[0]] if uids is not None else rows[0]
                raise DataError(
                    f"Found {len(rows)} pictures of a batch with values that are no numbers (the first is {first}), expected finite pixels; make the shards or the kept features again."
                )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.flops is None and self.device.type == "cuda":
            self.flops = self.flops_of(batch)
        left, total, terms = self._step(batch)
        self.terms = {"loss": total, **{f"term.{name}": value.detach() for name, value in terms.items()}}
        if self.device.type == "cpu":
            check_finite(self.terms, self.global_step, steps_folder(self.trainer))
        if self._how.term_norms and self.is_logged(self.global_step + 1):
            self.norms = watch.term_norms(terms, self.model.weight_of, self.model, lambda flat: mean_over_ranks({"": flat})[""])
        return left

    def _step(self, batch: Batch) -> grad_cache.Step:
        size = self._how.micro_batch
        if size is None:
            return grad_cache.whole_step(self.model, batch)
        return (grad_cache.cached_step if self._how.gradients == "cached" else grad_cache.accumulated_step)(self.model, batch, size)

    def flops_of(self, batch: Batch) -> float:
        """Operations of a step of this rank: of one part in one piece, times the parts. Queues, slow copies and random numbers are left as they were."""
        size = self._how.micro_batch
        count = grad_cache.pairs_of(batch)
        kept = [*self.model.buffers(), *(value for value in self.model.parameters() if not value.requires_grad)]
        before, seen = [value.clone() for value in kept], self.model.seen
        with torch.no_grad(), torch.random.fork_rng():
            _, flops = watch.flops_of(lambda: self.model(grad_cache.first_part(batch, size)))
            for value, was in zip(kept, before, strict=True):
                value.copy_(was)
        self.model.seen = seen
        return flops * count / min(size or count, count)

    def is_logged(self, step: int) -> bool:
        return step % self._how.log_every == 0 or step == self.steps

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        if isinstance(self.trainer.strategy, ranks.Averaging):
            ranks.average(self.parameters())
        self.grad_norm = ranks.clip(self.parameters(), self._settings.grad_clip or math.inf)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        done = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.model.clamp_scales()  # before any checkpoint of this step is written
        if self.average is not None and self._settings.ema is not None:
            self.average.update(min(self._settings.ema, (1 + done) / (10 + done)))

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optim.build(self.model, self._settings, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_end(self) -> None:
        self._final = self.weights()

    def weights(self, saved: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The towers' weights as they are published: averaged where optim.ema says so, whole where they are sharded (then every rank has to ask).

        Args:
            saved: state of a step checkpoint; what it lacks is locked, and as it was.
        """
        state = {**self.state_dict(), **saved} if saved is not None else ranks.whole(self.state_dict())
        own = {name.removeprefix("model.towers."): value for name, value in state.items() if name.startswith("model.towers.")}
        slow = {name.removeprefix("average.").replace("/", "."): value for name, value in state.items() if name.startswith("average.")}
        return {**own, **slow}

    @contextmanager
    def published(self) -> Iterator[None]:
        """The towers with the weights that would be published now, in eval mode; then as they were."""
        towers, own = self.model.towers, {name: value.clone() for name, value in self.model.towers.state_dict().items()} if self.average is not None else None
        if own is not None:
            towers.load_state_dict(self.weights())
        towers.eval()
        yield
        towers.train()
        if own is not None:
            towers.load_state_dict(own)

    def final(self, saved: Path | None) -> dict[str, Tensor]:
        """The weights at the end; those of the step checkpoint, where it was of the last step and nothing was left to train."""
        if self._final is None and saved is not None:
            self._final = self.weights(torch.load(saved, map_location="cpu", weights_only=True)["state_dict"])
        assert self._final is not None
        return self._final

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        locked = {name for name, value in self.named_parameters() if not value.requires_grad}
        locked |= {f"average.{name.removeprefix('model.towers.').replace('.', '/')}" for name in locked}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in locked}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = [name for name, value in self.named_parameters() if value.requires_grad and name not in checkpoint["state_dict"]]
        if missing:
            raise CheckpointError(
                f"Found no weight {missing[0]!r} in the step checkpoint, expected one of this model; remove the state folder beside the output."
            )


class Records(Callback):
    """Every N steps one row: into metrics.jsonl (which a resumed run continues) and to the reporter."""

    def __init__(self, folder: Path, batch_size: int, settled: int, explosion: Explosion | None, report: Reporter) -> None:
        self.folder, self.batch_size, self.settled, self.explosion, self.report = folder, batch_size, settled, explosion, report
        self._since, self._ended, self._waited, self._alarmed = (time.perf_counter(), 0), time.perf_counter(), 0.0, False

    def on_train_start(self, trainer: lightning.Trainer, loop: lightning.LightningModule) -> None:
        self._since, self._ended, self._waited = (time.perf_counter(), trainer.global_step), time.perf_counter(), 0.0
        if trainer.is_global_zero:  # rows after the checkpoint that is continued from will be written again
            kept = [row for row in read_rows(self.folder) if row["step"] <= trainer.global_step]
            (self.folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept))
            if self.explosion is not None:
                for row in kept:
                    self.explosion.look(row, self.folder / "steps")

    def on_train_batch_start(self, trainer: lightning.Trainer, loop: lightning.LightningModule, batch: Batch, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._ended  # reading, cropping, tokenising

    def on_train_batch_end(self, trainer: lightning.Trainer, loop: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if loop.is_logged(trainer.global_step):
            self._write(trainer, loop, trainer.global_step)
        self._ended = time.perf_counter()

    def _write(self, trainer: lightning.Trainer, loop: Loop, step: int) -> None:
        loop.check_pictures()
        row = {name: float(value) for name, value in mean_over_ranks(loop.terms).items()}
        check_finite({name: torch.tensor(value) for name, value in row.items()}, step - 1, steps_folder(trainer))
        now, (then, before), waited = time.perf_counter(), self._since, self._waited
        self._since, self._waited = (now, step), 0.0
        rates: Any = loop.lr_schedulers()
        row |= {"lr": float(max(rates.get_last_lr())), "grad_norm": float(loop.grad_norm), **loop.norms}
        row |= {"pairs_per_s": (step - before) * self.batch_size / (now - then), "data_wait": waited / (now - then)}
        row |= loop.model.scales()
        if loop.flops is not None and (peak := watch.peak_of(loop.device)):
            row |= {"mfu": loop.flops * (step - before) / (now - then) / peak}
        if trainer.is_global_zero:
            row |= watch.spreads(loop.model.seen, step > self.settled) if loop.model.seen is not None else {}
            if row.get("collapsed") and not self._alarmed:
                self._alarmed = True
                self.report.progress(watch.alarm(row), step, loop.steps, every_s=0)
            with (self.folder / METRICS).open("a") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
            self.report.metrics(row, step)
            self.report.progress(f"loss {row['loss']:.3f}, {row['pairs_per_s']:,.0f} pairs/s, step", step, loop.steps)
            if self.explosion is not None:
                self.explosion.look({"step": step, **row}, self.folder / "steps")


def read_rows(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl so far; a last line cut by a crash is left out."""
    file = folder / METRICS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_folder(trainer: lightning.Trainer) -> Path | None:
    """Where this run's step checkpoints lie."""
    return Path(str(trainer.checkpoint_callback.dirpath)) if trainer.checkpoint_callback else None  # type: ignore[attr-defined]


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
    accelerator = ranks.accelerator_of(settings)
    saved = ModelCheckpoint(
        folder / "steps", filename=STEPS.replace("*.ckpt", "{step:08d}"), auto_insert_metric_name=False, monitor="step", mode="max", save_top_k=2,
        every_n_train_steps=settings.checkpoint_every, save_on_train_epoch_end=False, enable_version_counter=False,
    )  # fmt: skip
    return lightning.Trainer(
        accelerator=accelerator, devices=settings.devices, strategy=ranks.strategy(settings, accelerator), plugins=[LightningEnvironment()], max_steps=steps, max_epochs=-1,
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true", deterministic=settings.deterministic, logger=False,
        callbacks=[*callbacks, saved], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=folder, inference_mode=False,
    )  # fmt: skip


def fit(
    loop: Loop, loader: Iterable[Any], settings: Fit, folder: Path, batch_size: int, report: Reporter, callbacks: Sequence[Callback] = ()
) -> dict[str, Tensor]:
    """Train to the end, from the newest valid step checkpoint in `folder` if there is one. Returns the towers' weights.

    The loader gives the batches of all remaining steps and has `state_dict` / `load_state_dict`.
    """
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    saved = newest_valid(folder / "steps")
    if saved is not None:
        report.progress("continued at step", step_of(saved), loop.steps, every_s=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")  # advice on loaders and modes that we chose on purpose
        explosion = None if settings.explodes is None else Explosion(settings.explodes, batch_size, optim.warmup_of(loop.steps, loop._settings))
        records = Records(folder, batch_size, optim.settled_of(loop.steps, loop._settings), explosion, report)
        work = trainer(settings, loop.steps, folder, [records, *callbacks])
        work.fit(loop, loader, ckpt_path=None if saved is None else str(saved), weights_only=True)
    return loop.final(saved)
