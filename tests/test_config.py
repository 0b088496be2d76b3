"""Settings: closed, frozen, bounded, layered; and every mistake is one sentence with what to do."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from vlm_core.config import PLACEMENT, Config, canonical_json, kinds
from vlm_core.errors import ConfigError, UnknownKind
from vlm_core.objectives.config import ImageTextContrastive, Objectives
from vlm_core.train.config import Pretrain


class Ball(Config):
    kind: Literal["ball"] = "ball"
    radius: float = Field(1.0, gt=0, description="in metres")


class Box(Config):
    kind: Literal["box"] = "box"
    edge: int = Field(2, ge=1, description="in metres")
    lid: bool = False


class Extra(Config):
    weight: float = 1.0


Shape = Annotated[Ball | Box, Field(discriminator="kind")]


class World(Config):
    """A config with everything that a form may show."""

    seed: int = Field(0, ge=0)
    lr: float = Field(0.1, gt=0, lt=1)
    shape: Shape = Ball()
    extra: Extra | None = None
    names: list[str] = ["a"]
    weights: dict[str, float] = {}


def test_changes_are_laid_over_dotted_names_and_checked() -> None:
    world = World().but("lr=1e-3", "shape.radius=2.5", "extra.weight=3", "names=[x, y]", "weights.alt=0.5")
    assert (world.lr, world.shape, world.extra, world.names, world.weights) == (0.001, Ball(radius=2.5), Extra(weight=3), ["x", "y"], {"alt": 0.5})
    assert World().extra is None, "a change never reaches back"
    assert world.but("extra=null").extra is None


def test_another_kind_starts_from_its_own_defaults() -> None:
    world = World().merged({"shape": {"kind": "box", "lid": True}})
    assert world.shape == Box(edge=2, lid=True)
    assert world.merged({"shape": {"edge": 7}}).shape == Box(edge=7, lid=True)


def test_settings_never_change_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        World().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "sed=1",
            r"Found the unknown setting 'sed' of World, expected one that exists; did you mean 'seed'\? Choose one of: extra, lr, names, seed, shape, weights\.",
        ),
        ("lr=2", r"Found 2 for 'lr' of World, expected: input should be less than 1; change that value\."),
        ("seed=-1", r"Found -1 for 'seed' of World, expected: input should be greater than or equal to 0; change that value\."),
        ("lr=.nan", r"Found nan for 'lr' of World, expected: input should be a finite number"),
        ("seed=many", r"Found 'many' for 'seed' of World, expected: input should be a valid integer"),
        ("shape.radios=2", r"Found the unknown setting 'shape\.ball\.radios' of World.*did you mean 'radius'\? Choose one of: kind, radius\."),
        ("shape.size.x=2", r"Found the setting 'shape\.size\.x=2', but there is no 'size' here; Choose one of: kind, radius\."),
        ("seed.x=2", r"Found the setting 'seed\.x=2', but 'seed' is a single value; set it as a whole\."),
        ("seed", r"Found the setting 'seed' without '=', expected NAME=VALUE; write for instance lr=0\.001\."),
        ("names=[a", r"Found '\[a', which is not a YAML value"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_what_was_found_and_what_to_do(change: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        World().but(change)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 20


def test_an_unknown_kind_lists_the_menu_with_the_nearest_name_first() -> None:
    with pytest.raises(UnknownKind, match=r"Found kind 'bal' at 'shape', expected a known one; did you mean 'ball'\? Choose one of: ball, box\."):
        World().merged({"shape": {"kind": "bal"}})
    with pytest.raises(ConfigError, match=r"Found no 'kind' at 'shape'"):
        World.read({"shape": {"radius": 1.0}})


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(1 more settings are wrong\)"):
        World.read({"seed": -1, "lr": 5})


def test_equal_settings_have_equal_digests_whatever_the_order() -> None:
    assert World(seed=1, lr=0.5).digest() == World(lr=0.5, seed=1).digest() != World(seed=2, lr=0.5).digest()
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'


def test_settings_of_the_place_are_left_out_where_a_killed_run_asks_whether_it_may_go_on() -> None:
    class Crew(Config):
        hands: int = Field(1, json_schema_extra=PLACEMENT)
        speed: float = 2.0

    class Job(Config):
        crew: Crew = Crew()
        spare: Crew | None = None
        only: Literal["here"] = Field("here", json_schema_extra=PLACEMENT)

    assert Job().unplaced() == {"crew": {"speed": 2.0}, "spare": None}
    assert Job().but("crew.hands=9", "spare={}").unplaced() == {"crew": {"speed": 2.0}, "spare": {"speed": 2.0}}
    assert Job().digest() != Job().but("crew.hands=9").digest()
    plain = Pretrain(objectives=Objectives(image_text_contrastive=ImageTextContrastive()))
    assert plain.but("fit.devices=4", "fit.accelerator=cpu", "fit.strategy=fsdp", "loader.workers=3").unplaced() == plain.unplaced()
    assert plain.but("loader.shuffle_window=3").unplaced() != plain.unplaced()


def test_flat_names_are_dotted_scalars() -> None:
    flat = World(extra=Extra()).flat()
    assert flat == {"seed": 0, "lr": 0.1, "shape.kind": "ball", "shape.radius": 1.0, "extra.weight": 1.0, "names": '["a"]', "weights": "{}"}


def test_the_menu_of_a_union_is_its_kinds_in_order() -> None:
    assert list(kinds(Shape)) == ["ball", "box"]
    assert kinds(Shape)["box"] is Box
