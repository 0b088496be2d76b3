"""`vlm distil`: shards and a trained teacher -> a small student, and its twin that had none.

The student is an ordinary pre-training run with one thing more per step: terms that compare it with the teacher, which learns nothing. It sees every
caption once, before training, and every picture either then (its centre) or in each step as the student does (`teacher_views`). Source of the terms:
CLIP-KD, arXiv 2307.12732.
"""

# B pairs, N samples, T distinct captions, D joint width

import importlib
import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from vlm_core.checkpoint import fill, read_weights, write_weights
from vlm_core.data.shards.samples import Samples, training_samples
from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import Terms
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.towers import Outputs, TwoTower, unit
from vlm_core.objectives.base import full_precision
from vlm_core.stage import Report, Stage
from vlm_core.train import locked, look
from vlm_core.train.body import Batch, Lesson
from vlm_core.train.config import Distil, Pretrain
from vlm_core.train.fit import Reporter, read_rows
from vlm_core.train.launch import run_ranks
from vlm_core.train.pretrain import FINAL, StageReporter, passes
from vlm_core.train.pretrain import train as train_student
from vlm_core.train.teacher_views import SameView

TAUGHT = "teacher.safetensors"
BATCH = 64


def distil(config: Distil, stage: Stage) -> Report:
    """The verb. What a crash leaves in stage.state is continued by the same command."""
    shards, teacher = stage.input("shards"), stage.input("teacher")
    report = StageReporter(stage)
    settings = {"config": config.student.model_dump(mode="json"), "shards": str(shards), "initial": ""}
    same = config.teacher_views == "same"
    look_once(teacher, training_samples(shards, config.student.loader), stage.state, report, pictures=not same)
    lesson = {"terms": config.terms.model_dump(mode="json"), "taught": str(stage.state / TAUGHT), "teacher": str(teacher) if same else ""}
    lessons: dict[str, Any] = {"student": lesson, **({"twin": None} if config.twin else {})}
    for name, lesson in lessons.items():
        folder = stage.state / name
        folder.mkdir(exist_ok=True)
        if not (folder / FINAL).exists():
            stage.progress(f"training the {name}")
            run_one({**settings, "lesson": lesson}, folder, config.student.fit.devices, report)
        publish(config, stage, name, teacher)
    return report_on(config, stage, shards, list(lessons), teacher)


def run_one(settings: Mapping[str, Any], folder: Path, devices: int, report: Reporter) -> None:
    if devices == 1:
        train(settings, folder, report)
    else:
        run_ranks("vlm_core.train.distill:train", settings, folder, devices, report)


def train(settings: Mapping[str, Any], folder: Path, report: Reporter) -> None:
    """One model to the end, with a teacher or without; runs in every rank."""
    chosen = settings["lesson"]
    if chosen is None:
        train_student(settings, folder, report)
        return
    config = Pretrain.read(settings["config"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        samples = training_samples(Path(settings["shards"]), config.loader)
        view = None
        if chosen["teacher"]:
            view = SameView(pretrained.load(chosen["teacher"]), samples, pixels_of(config.model.image, config.crop_scale_min), config.seed)
        lesson = Teaching(Terms.read(chosen["terms"]), read_weights(Path(chosen["taught"])), captions(samples), config.model.width, view)
    train_student(settings, folder, report, lesson)


# ---------------------------------------------------------------- the teacher's part


def captions(samples: Samples) -> dict[str, int]:
    """Every caption that training may choose -> its row among the teacher's text embeddings."""
    return locked.distinct(locked.captions_of(samples))


def look_once(teacher: Path, samples: Samples, folder: Path, report: Reporter, pictures: bool = True) -> None:
    """The teacher's unit embeddings of all captions (T, D) and, if wanted, pictures (N, D), kept in `folder`."""
    if (folder / TAUGHT).exists():
        return
    model, texts = pretrained.load(teacher), list(captions(samples))
    parts = []
    for begin in range(0, len(samples), BATCH) if pictures else ():
        some = [Image.open(io.BytesIO(samples.jpeg(row))).convert("RGB") for row in range(begin, min(begin + BATCH, len(samples)))]
        parts.append(model.encode_images(some, BATCH))
        report.progress("teacher's view of pictures", begin + len(some), len(samples))
    seen = {**({"images": torch.cat(parts)} if parts else {}), "texts": model.encode_texts(texts), "scale": model.towers.scale.detach()}
    write_weights(folder / f".{TAUGHT}", seen)
    (folder / f".{TAUGHT}").rename(folder / TAUGHT)


class Teaching(Lesson):
    """Weighted terms between the student's embeddings and the teacher's. A student of another width is projected to the teacher's first."""

    def __init__(self, terms: Terms, taught: Mapping[str, Tensor], texts: Mapping[str, int], width: int, view: SameView | None = None) -> None:
        """`view` looks at the pictures of each step; without it `taught` has their embeddings."""
        super().__init__()
        self.view = view
        self.texts, self.weights = dict(texts), {kind: settings.weight for kind, settings in terms.chosen().items()}
        self.taught = dict(taught)  # no module, no parameter, no gradient
        target = taught["texts"].shape[1]
        same = width == target
        self.project_image = nn.Identity() if same else nn.Linear(width, target)
        self.project_text = nn.Identity() if same else nn.Linear(width, target)
        built: dict[str, DistillTerm] = {
            kind: importlib.import_module(f"vlm_core.distill.{kind}").build(settings, target) for kind, settings in terms.chosen().items()
        }
        self.terms = nn.ModuleDict(built)

    def forward(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        device = out.image_BD.device
        with full_precision(device):
            rows_B = torch.tensor([self.texts[text] for text in batch["texts"]])
            seen_BD = self.view.see(batch, device) if self.view is not None else self.taught["images"][batch["rows"].cpu()].to(device)
            teacher = Embeddings(seen_BD, self.taught["texts"][rows_B].to(device), self.taught["scale"].to(device))
            own = Embeddings(out.image_BD, out.text_BD, out.scale)
            student = Embeddings(unit(self.project_image(out.image_BD)), unit(self.project_text(out.text_BD)), out.scale)
            return {
                name: self.weights[kind] * value
                for kind, term in self.terms.items()
                for name, value in term(student if term.same_width else own, teacher).items()
            }


# ---------------------------------------------------------------- what is kept and said


def publish(config: Distil, stage: Stage, name: str, teacher: Path) -> None:
    towers = TwoTower(config.student.model, fresh=False)
    weights = stage.state / name / FINAL
    fill(towers, read_weights(weights), str(weights))
    taught = name == "student"
    origin = [{"model_id": pretrained.read_settings(teacher)["weights_sha256"], "relation": "teacher", "name": ""}] if taught else []
    about = {
        "recipe": f"{stage.recipe}{'' if taught else ' without a teacher'}", "seed": config.student.seed, "snapshot_md5": stage.versions.get("shards", ""),
        "parents": origin, "training": config.student.model_dump(mode="json", exclude={"model": True, "fit": {"devices", "accelerator", "log_every", "checkpoint_every"}}),
        "terms": config.terms.model_dump(mode="json") if taught else {},
    }  # fmt: skip
    (stage.out / name).mkdir()
    pretrained.save(stage.out / name, towers, pixels_of(config.student.model.image, config.student.crop_scale_min), about, words=stage.state / name)


def report_on(config: Distil, stage: Stage, shards: Path, names: list[str], teacher: Path) -> Report:
    metrics, pictures, table = dict[str, float](), dict[str, str](), list[dict[str, Any]]()
    rows = {name: read_rows(stage.state / name) for name in names}
    seen = {"teacher": look.held_out(pretrained.load(teacher), shards, stage.pictures / "teacher.png")}
    for name in names:
        seen[name] = look.held_out(pretrained.load(stage.out / name), shards, stage.pictures / f"{name}.png")
        look.loss_curve(rows[name], stage.pictures / f"{name}_loss.png")
        metrics |= {f"{name}.{key}": value for key, value in seen[name].items()}
        metrics |= {f"{name}.final_loss": rows[name][-1]["loss"], f"{name}.pairs_per_s": statistics.median(row["pairs_per_s"] for row in rows[name])}
        pictures |= {f"loss of the {name}": f"{name}_loss.png", f"nearest captions by the {name}": f"{name}.png"}
    for who, found in seen.items():
        table.append({"model": who, **{key.removeprefix("quick."): round(value, 4) for key, value in found.items()}})
    samples, steps = training_samples(shards, config.student.loader), int(rows["student"][-1]["step"])
    counts = {"in": len(samples), "steps": steps, "seen": steps * config.student.loader.batch_size, **samples.kept_out}
    known = catalog(stage, names, passes(config.student, samples, rows["student"]))
    return Report(counts=counts, metrics=metrics, pictures=pictures, tables={"quick numbers on held-out pairs": table}, catalog=known)


def catalog(stage: Stage, names: list[str], epochs: float) -> dict[str, pa.Table]:
    models, links = list[dict[str, Any]](), list[dict[str, str]]()
    for name in names:
        about = pretrained.read_settings(stage.out / name)
        models.append({
            "model_id": about["weights_sha256"], "name": name, "role": name, "recipe": about["recipe"], "snapshot_md5": about["snapshot_md5"],
            "path": str(stage.final / name), "seed": about["seed"], "epochs": epochs,
        })  # fmt: skip
        links += [{"model_id": about["weights_sha256"], "parent_model_id": parent["model_id"], "relation": parent["relation"]} for parent in about["parents"]]
    return {"models": pa.Table.from_pylist(models), "model_parents": pa.Table.from_pylist(links)}
