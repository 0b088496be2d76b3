"""The verb: a teacher that does not move, a student that comes nearer to it, a twin that differs in nothing but the lesson."""

import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.small_world import make_shards, stage_for
from vlm_core.checkpoint import read_weights
from vlm_core.data.config import Loader
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.data.shards.shards import read_samples
from vlm_core.distill.config import FeatureKd, Terms
from vlm_core.errors import Incompatible
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.towers import Outputs, TwoTower, unit
from vlm_core.recipes.distill import clip_kd, clip_kd_tiny
from vlm_core.run import load
from vlm_core.train.config import Distil
from vlm_core.train.distill import Teaching, captions, distil
from vlm_core.train.teacher_views import SameView

TINY = (
    "student.model.image={kind: vit, image_size: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "student.model.text={kind: clip_transformer, context_length: 16, width: 32, layers: 1, heads: 2}",
    "student.model.width=16", "student.loader.batch_size=10", "student.fit.epochs=12", "student.optim.warmup_steps=2", "student.optim.lr=0.003",
)  # fmt: skip


def teacher_folder(root: Path) -> Path:
    config = menu.TwoTower(
        image=menu.Vit(image_size=32, patch_size=8, width=48, layers=2, heads=2),
        text=menu.ClipTransformer(context_length=16, width=48, layers=1, heads=2),
        width=24,
    )
    torch.manual_seed(5)
    root.mkdir()
    pretrained.save(root, TwoTower(config), pixels_of(config.image), {"recipe": "teacher", "parents": []})
    return root


def distance(student: Path, teacher: Path, shards: Path) -> float:
    """Mean absolute difference between the image-image similarity matrices: what a projection cannot hide."""
    pictures = [Image.open(io.BytesIO(sample.jpeg)).convert("RGB") for sample in list(read_samples(shards, "train"))[:24]]
    one, two = (pretrained.load(folder).encode_images(pictures) for folder in (student, teacher))
    return float((one @ one.T - two @ two.T).abs().mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("distil")
    shards, _ = make_shards(root / "shards")
    teacher = teacher_folder(root / "teacher")
    before = (teacher / "model.safetensors").read_bytes()
    stage = stage_for(root / "run", {"shards": shards, "teacher": teacher}, "distil")
    report = distil(clip_kd_tiny().but(*TINY, "terms.relation_kd={}", "terms.fused_kd={}"), stage)
    assert (teacher / "model.safetensors").read_bytes() == before
    return {"shards": shards, "teacher": teacher, "out": stage.out, "state": stage.state, "report": report}  # type: ignore[dict-item]


def test_the_student_comes_nearer_to_the_teacher_than_its_twin(world: dict[str, Path]) -> None:
    gaps = {name: distance(world["out"] / name, world["teacher"], world["shards"]) for name in ("student", "twin")}
    assert gaps["student"] < gaps["twin"]


def test_model_folders_hold_the_towers_only_and_name_the_teacher(world: dict[str, Path]) -> None:
    student, twin = (pretrained.read_settings(world["out"] / name) for name in ("student", "twin"))
    teacher = pretrained.read_settings(world["teacher"])
    assert student["parents"] == [{"model_id": teacher["weights_sha256"], "relation": "teacher", "name": ""}]
    assert twin["parents"] == []
    assert student["parameters"] == twin["parameters"]
    links = world["report"].catalog["model_parents"].to_pylist()  # type: ignore[attr-defined]
    assert links == [{"model_id": student["weights_sha256"], "parent_model_id": teacher["weights_sha256"], "relation": "teacher"}]


def test_the_twin_is_the_same_student_on_the_same_batches(world: dict[str, Path]) -> None:
    student, twin = (pretrained.read_settings(world["out"] / name) for name in ("student", "twin"))
    assert student["training"] == twin["training"]
    report = world["report"]
    assert report.counts["in"] == len(ShardSamples(world["shards"], "train"))  # type: ignore[attr-defined]


def test_every_caption_seen_is_counted_by_its_origin(world: dict[str, Path]) -> None:
    seen = {name: json.loads((world["state"] / name / "mixture.json").read_text()) for name in ("student", "twin")}
    assert seen["student"] == seen["twin"]
    captions = seen["twin"]["captions"]
    assert sum(captions.values()) == 36 * 10  # steps x batch
    assert abs(captions["rewritten"] - 180) < 4 * (360 / 4) ** 0.5  # one raw and one accepted rewrite per sample: even odds


@pytest.fixture(scope="module")
def same(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student whose teacher looks at its crops, which keep a half of the picture or more."""
    stage = stage_for(tmp_path_factory.mktemp("same") / "run", {"shards": world["shards"], "teacher": world["teacher"]}, "distil")
    distil(clip_kd_tiny().but(*TINY, "teacher_views=same", "student.crop_scale_min=0.5", "student.fit.epochs=2", "twin=false"), stage)
    return stage.state


def test_the_teacher_sees_the_crop_of_the_student(world: dict[str, Path], same: Path) -> None:
    """A teacher of the student's size gets the student's own pixels; a larger one the same part of the picture."""
    samples = ShardSamples(world["shards"], "train")
    student = pixels_of(menu.Vit(image_size=32), 0.5)
    (batch,) = itertools.islice(TrainLoader(samples, Loader(batch_size=8), student, seed=3), 1)
    teacher = pretrained.load(world["teacher"])
    view = SameView(teacher, samples, student, 3)
    squares = torch.stack([view.square(row, epoch) for row, epoch in zip(batch["rows"].tolist(), batch["epochs"].tolist(), strict=True)])
    centre = torch.stack([teacher.pixels.eval_square(Image.open(io.BytesIO(samples.jpeg(row)))) for row in batch["rows"].tolist()])
    near, far = (float((seen.float() - batch["images"].float()).abs().mean()) for seen in (squares, centre))
    assert near < 0.5 * far  # the student's pixels were decoded at another scale before they were made small
    own = unit(teacher.towers.see(teacher.pixels.normalise(squares)))
    assert torch.allclose(view.see(dict(batch), torch.device("cpu")), own, atol=1e-6)
    assert read_weights(same / "teacher.safetensors").keys() == {"texts", "scale"}, "no picture is encoded before its step"


def test_terms_of_the_same_view_are_those_of_the_published_equations(world: dict[str, Path]) -> None:
    samples = ShardSamples(world["shards"], "train")
    student = pixels_of(menu.Vit(image_size=32), 0.5)
    batch = dict(next(iter(TrainLoader(samples, Loader(batch_size=8), student, seed=3))))
    teacher, texts = pretrained.load(world["teacher"]), captions(samples)
    taught = {"texts": teacher.encode_texts(list(texts)), "scale": teacher.towers.scale.detach()}
    lesson = Teaching(Terms(feature_kd=FeatureKd(weight=3.0), contrastive_kd=None), taught, texts, 24, SameView(teacher, samples, student, 3))
    torch.manual_seed(0)
    image_BD, text_BD = unit(torch.randn(8, 24)), unit(torch.randn(8, 24))
    found = lesson(Outputs(image_BD, text_BD, torch.tensor(10.0), torch.tensor(0.0)), batch)["feature_kd"]
    seen_BD, said_BD = lesson.view.see(batch, torch.device("cpu")), taught["texts"][[texts[text] for text in batch["texts"]]]
    assert float(found) == pytest.approx(3 * float(((image_BD - seen_BD) ** 2).mean() + ((text_BD - said_BD) ** 2).mean()), rel=1e-5)


def test_a_teacher_that_saw_each_picture_once_does_not_teach_small_crops() -> None:
    with pytest.raises(Incompatible, match=r"Found teacher_views=cached with student.crop_scale_min 0.5, expected crops of at least 0.9"):
        clip_kd_tiny().but("student.crop_scale_min=0.5")
    assert clip_kd().teacher_views == "same"


def test_a_student_without_a_term_is_refused() -> None:
    with pytest.raises(Incompatible, match="no distillation term"):
        Distil.read({"terms": {"feature_kd": None, "contrastive_kd": None}})


def test_a_locked_student_is_refused() -> None:
    with pytest.raises(Incompatible, match="locked"):
        clip_kd_tiny().but("student.model.image={kind: efficientnet_lite0, names: false}")


def test_the_first_recipe_of_the_file_is_the_default() -> None:
    assert load("distil") == ("clip_kd_tiny", clip_kd_tiny())
