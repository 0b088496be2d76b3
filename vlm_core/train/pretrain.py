"""`vlm pretrain`: shards -> a model folder. Encode once, ask every chosen objective, take the weighted sum, step."""

# B pairs, N samples, F trunk features, L tokens

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch.callbacks import Callback

from vlm_core.checkpoint import fill, read_weights, write_weights
from vlm_core.data.eval_sets.known import FILE as KNOWN_FILE
from vlm_core.data.eval_sets.known import write_known
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.samples import Samples, training_samples
from vlm_core.errors import ConfigError
from vlm_core.models import config as models
from vlm_core.models import packaged, pretrained, tokenizer
from vlm_core.models.pixels import pixels_of
from vlm_core.models.towers import TwoTower
from vlm_core.objectives import base
from vlm_core.stage import Report, Stage, data_version, file_sha256, write_json
from vlm_core.train import detections, devices, grad_cache, inputs, locked, look, optim, probe, ranks, references, scenes, snapshot, visual_tokens, watch
from vlm_core.train.blocks import checkpoint_blocks
from vlm_core.train.body import Batch, Body, Lesson
from vlm_core.train.config import Pretrain
from vlm_core.train.fit import Loop, Reporter, Row, fit, read_rows
from vlm_core.train.launch import run_ranks
from vlm_core.train.plan import require

FINAL, MIXTURE = "final.safetensors", "mixture.json"


def pretrain(config: Pretrain, stage: Stage) -> Report:
    """The verb. What a crash leaves in stage.state is continued by the same command."""
    shards = stage.input("shards")
    initial = str(stage.input("initial")) if "initial" in stage.inputs else ""
    settings = {"config": config.model_dump(mode="json"), "shards": str(shards), "initial": initial}
    if initial:
        pretrained.require_same(Path(initial), config.model)
    devices.require(config.fit)
    snapshot.check(config, shards)
    require(config)
    parent = _known_parent(config, initial)
    report = StageReporter(stage)
    if not (stage.state / FINAL).exists():
        if config.fit.devices == 1:
            train(settings, stage.state, report)
        else:
            ranks.require_shared_statistics(first_towers(config, initial), config.fit)
            train_locked_first(config, shards, stage.state, report)
            references.prepare(config, shards, stage.state, report)
            transform = pixels_of(config.model.image, config.crop_scale_min)
            samples = references.trained_on(config, shards)
            detections.prepare(config, samples, stage.state, report)
            visual_tokens.prepare(first_towers(config, initial), samples, transform, config.seed, stage.state, report.progress)
            run_ranks("vlm_core.train.pretrain:train", settings, stage.state, config.fit.devices, report)
    towers = TwoTower(config.model, fresh=False)
    fill(towers, read_weights(stage.state / FINAL), str(stage.state / FINAL))
    about = {
        "recipe": stage.recipe, "seed": config.seed, "snapshot_md5": stage.versions.get("shards", ""), "parents": parents(config, initial),
        "training": config.model_dump(mode="json", exclude={"model": True, "fit": {"devices", "accelerator", "log_every", "checkpoint_every"}}),
    }  # fmt: skip
    about |= references.describe(config, shards, towers, stage.out)
    pretrained.save(stage.out, towers, pixels_of(config.model.image, config.crop_scale_min), about, words=stage.state)
    if config.prints:
        write_known(stage.out, training_samples(shards, config.loader), parent, report.progress)
    return report_on(config, stage, shards)


def _known_parent(config: Pretrain, initial: str) -> Path | None:
    """The model that it starts from, if what that knows has to be said too. Raises ConfigError when nobody can tell."""
    if not (config.prints and initial):
        return None
    if not (Path(initial) / KNOWN_FILE).exists():
        raise ConfigError(
            f"Found prints=true with the initial model {initial}, which does not say what it was trained on, expected {KNOWN_FILE} in its folder; "
            "train that with prints=true too, or start afresh."
        )
    return Path(initial)


# ---------------------------------------------------------------- training, in one process or in each of several


def train(settings: Mapping[str, Any], folder: Path, report: Reporter, lesson: Lesson | None = None) -> None:
    """Train to the end and leave the weights in `folder`; rank and world come from the launcher's environment."""
    config = Pretrain.read(settings["config"])
    rank, world = int(os.environ.get("RANK", "0")), config.fit.devices
    samples = references.trained_on(config, Path(settings["shards"]))
    towers = ranks.share_statistics(first_towers(config, settings["initial"]), config.fit)
    objectives, weights = first_objectives(config, towers)
    transform = pixels_of(config.model.image, config.crop_scale_min)
    needs = config.objectives.needs
    beside = inputs.beside(config, transform)
    reading = partial(TrainLoader, samples, config.loader, transform, seed=config.seed, rank=rank, world=world, beside=beside if beside.wanted else None)
    plan = reading()
    steps = plan.steps = optim.steps_of(config.fit, config.loader.batch_size, plan.steps_per_epoch)
    visual_tokens.prepare(towers, samples, transform, config.seed, folder, report.progress)
    references.prepare(config, Path(settings["shards"]), folder, report)
    detections.prepare(config, samples, folder, report)
    tokenizer.ready(config.model.text, folder, locked.spoken(samples), Path(settings["initial"]) if settings["initial"] else None)
    kit = inputs.Kit(config, transform, tokenizer.build(config.model.text, folder), references.attach(towers, folder), detections.attach(config, folder))
    body = Body(towers, objectives, weights, needs, lesson)
    if config.fit.micro_batch is not None and config.fit.gradients == "cached":
        grad_cache.refuse_batch_norm(towers)
    if config.fit.checkpoint_blocks:
        checkpoint_blocks(towers)

    def prepare(batch: Batch) -> Batch:
        return inputs.assemble(batch, kit, needs, towers.log_scale.device)

    loader = locked_loader(config, plan, towers, folder, report) if locked.is_locked(towers.image) else plan
    loop = Loop(body, config.optim, config.fit, steps, config.seed, prepare)
    looking = callbacks(
        config,
        kit,
        towers,
        Path(settings["shards"]),
        folder,
        report,
        lambda: grad_cache.first_part(prepare(dict(next(iter(reading())))), config.fit.micro_batch),
    )
    final = fit(loop, loader, config.fit, folder, config.loader.batch_size, report, looking)
    if rank == 0:
        write_json(folder / MIXTURE, plan.mixture)
        for what, counted in plan.counted.items():
            for epoch, seen in counted.items():
                report.metrics({f"{what}.{name}": count / seen.total() for name, count in seen.items()}, (epoch + 1) * plan.steps_per_epoch)
        write_weights(folder / f".{FINAL}", final)
        (folder / f".{FINAL}").rename(folder / FINAL)


def callbacks(config: Pretrain, kit: inputs.Kit, towers: TwoTower, shards: Path, folder: Path, report: Reporter, first: Callable[[], Batch]) -> list[Callback]:
    """What looks on while the model trains, as the settings ask."""
    asked = list[Callback]()
    if config.fit.compile == "probe":
        precision = torch.bfloat16 if config.fit.precision == "bf16" else torch.float32
        asked.append(probe.Probe(first, precision, folder, lambda said: report.progress(f"{said}; steps tried", probe.STEPS, probe.STEPS)))
    if config.fit.heldout_every:
        asked.append(watch.HeldOut(folder, config.fit.heldout_every, look.while_training(towers, kit.transform, kit.tokenize, shards), report.metrics))
    return asked


def first_objectives(config: Pretrain, towers: TwoTower) -> tuple[dict[str, base.Objective], dict[str, float]]:
    """Objectives whose own first weights depend on the seed only, and the weights of their terms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return base.build(config.objectives, towers)


def first_towers(config: Pretrain, initial: str) -> TwoTower:
    """The weights that training starts from: those of a model folder, or random ones that depend on the seed only; so do parts that the folder's model lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return (pretrained.load(initial, expected=config.model).towers if initial else TwoTower(config.model)).train()


def locked_loader(config: Pretrain, plan: TrainLoader, towers: TwoTower, folder: Path, report: Reporter) -> locked.LockedLoader:
    records = locked.captions_of(plan.samples)
    texts = locked.distinct(records)
    images_NF = locked.image_features(towers, plan.samples, plan.transform, folder, report)
    texts_TF = locked.text_features(towers, texts, tokenizer.build(config.model.text, folder), folder, report) if locked.is_locked(towers.text) else None
    return locked.LockedLoader(plan, records, images_NF, texts, texts_TF)


def train_locked_first(config: Pretrain, shards: Path, folder: Path, report: Reporter) -> None:
    """Features of locked trunks, before several ranks would all compute them."""
    towers = first_towers(config, "")
    if locked.is_locked(towers.image):
        transform = pixels_of(config.model.image, config.crop_scale_min)
        locked_loader(config, TrainLoader(training_samples(shards, config.loader), config.loader, transform), towers, folder, report)


# ---------------------------------------------------------------- what is said about it


class StageReporter:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.stage.tracker.metrics(values, step)

    def progress(self, what: str, done: int, total: int, every_s: float = 2.0) -> None:
        self.stage.progress(what, done, total, every_s)


def parents(config: Pretrain, initial: str) -> list[dict[str, str]]:
    """Models that this one was made from, by digest of their weights."""
    brought = [{"model_id": packaged.digest(name), "relation": relation, "name": name} for name, relation in config.model.packaged().items()]
    if initial:
        first = {"model_id": pretrained.read_settings(Path(initial))["weights_sha256"], "relation": "initial", "name": ""}
        return [first, *(parent for parent in brought if parent["relation"] != "initial")]
    files = [file for tower in (config.model.image, config.model.text) if (file := weights_of(tower))]
    return [*brought, *({"model_id": file_sha256(file), "relation": "initial", "name": file.name} for file in files)]


def weights_of(tower: models.Tower) -> Path | None:
    """The file of weights that a tower's settings name."""
    if not (named := getattr(tower, "weights", "")):
        return None
    return Path(named) / "model.safetensors" if isinstance(tower, models.Bert) else Path(named)


def report_on(config: Pretrain, stage: Stage, shards: Path) -> Report:
    rows: list[Row] = read_rows(stage.state)
    model = pretrained.load(stage.out)
    seen = look.held_out(model, shards, stage.pictures / "nearest_captions.png")
    look.loss_curve(rows, stage.pictures / "loss.png")
    last = rows[-max(len(rows) // 20, 1) :]
    metrics = {
        "final_loss": statistics.fmean(row["loss"] for row in last), "pairs_per_s": statistics.median(row["pairs_per_s"] for row in rows),
        **mixture(stage.state), "logit_scale": rows[-1]["scale"], "parameters": float(model.config["parameters"]), **seen,
        **watch.summary(rows),
    }  # fmt: skip
    samples, seen_pairs = references.trained_on(config, shards), int(rows[-1]["step"]) * config.loader.batch_size
    counts = {"in": len(samples), "steps": int(rows[-1]["step"]), "seen": seen_pairs, "epochs": math.ceil(passes(config, samples, rows)), **samples.kept_out}
    pictures = {"loss over steps": "loss.png", "nearest captions of held-out pictures": "nearest_captions.png"}
    pictures |= scenes.sheet(config, samples, model.pixels, stage.pictures)
    pictures |= visual_tokens.rebuilt_sheet(model.towers, shards, model.pixels, stage.pictures)
    pictures |= watch.sheets(stage.state, stage.pictures)
    looked = {"held-out pairs while training": watch.held_out_rows(stage.state)} if config.fit.heldout_every else {}
    return Report(counts=counts, metrics=metrics, pictures=pictures, tables=looked, catalog=catalog(stage, model, config, passes(config, samples, rows)))


def passes(config: Pretrain, samples: Samples, rows: list[Row]) -> float:
    """How often the average sample was seen."""
    return rows[-1]["step"] / samples.order(config.loader, config.seed).steps_per_epoch


def mixture(folder: Path) -> dict[str, float]:
    """Shares of the origins whose captions the first rank was taught with, and of languages drawn by weight; the tracker has them per epoch."""
    counted: dict[str, dict[str, int]] = json.loads((folder / MIXTURE).read_text())
    return {f"{what}.{name}": count / sum(seen.values()) for what, seen in counted.items() for name, count in sorted(seen.items())}


def catalog(stage: Stage, model: pretrained.Vlm, config: Pretrain, epochs: float) -> dict[str, pa.Table]:
    own = {
        "model_id": model.digest, "name": stage.final.name, "role": "pretrained", "recipe": stage.recipe, "snapshot_md5": model.config["snapshot_md5"],
        "path": str(stage.final), "seed": config.seed, "epochs": epochs,
    }  # fmt: skip
    packages = [
        {**dict.fromkeys(own, ""), "model_id": parent["model_id"], "name": parent["name"], "role": "packaged", "seed": 0, "epochs": 0.0}
        for parent in model.config["parents"] if parent["name"]
    ]  # fmt: skip
    links = [{"model_id": model.digest, "parent_model_id": parent["model_id"], "relation": parent["relation"]} for parent in model.config["parents"]]
    mixed = [{"model_id": model.digest, "snapshot_md5": data_version(Path(more.shards)), "weight": more.weight} for more in config.loader.mix.values()]
    tables = {"models": [own, *packages], "model_parents": links, "model_data": mixed}
    return {name: pa.Table.from_pylist(rows) for name, rows in tables.items() if rows}
