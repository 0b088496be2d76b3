"""What the Launchpad shows is what runs: a form of settings gives exactly these settings back, through Dagster itself."""

from typing import Annotated, Any, Literal

import dagster as dg
import pytest
from pydantic import Field

from pipelines import launchpad
from vlm_core.config import Config
from vlm_core.errors import ConfigError
from vlm_core.run import VERBS, recipes

RECIPES = [(verb, name) for verb in VERBS for name in recipes(verb)]


class Ridge(Config):
    kind: Literal["ridge"] = "ridge"
    strength: float = Field(0.1, ge=0, description="of the penalty")


class Trees(Config):
    kind: Literal["trees"] = "trees"
    count: int = 3


Model = Annotated[Ridge | Trees, Field(discriminator="kind")]


class Part(Config):
    depth: int = Field(2, gt=0, description="of the tower")
    words: list[str] = ["x"]
    model: Model = Ridge()
    mode: Literal["p", "q"] | None = None


class Everything(Config):
    """Every shape of field that settings may have."""

    count: int = Field(1, ge=1, le=9, description="how many")
    share: float | None = None
    model: Model = Trees(count=5)
    extra: Model | None = None
    part: Part = Part()
    more: Part | None = None
    parts: dict[str, Part] = {"k": Part(depth=7, model=Trees(count=8))}
    hosts: dict[str, str] = {"a.b": "127.0.0.1:80"}
    weights: dict[str, float] = {"raw": 1}
    tags: list[Literal["x", "y"]] = ["x"]
    flag: bool = True


def through_dagster(form: type[dg.Config], schema: type[Config], run_config: dict[str, Any] | None = None) -> Config:
    """The settings that a step reads from its form."""
    found: list[Config] = []

    @dg.op(name="step")
    def step(config: form) -> None:  # type: ignore[valid-type]
        found.append(launchpad.read(schema, config))

    @dg.job
    def one() -> None:
        step()

    filled = {"ops": {"step": {"config": run_config}}} if run_config is not None else {}
    one.execute_in_process(run_config=filled, instance=dg.DagsterInstance.ephemeral())
    return found[0]


@pytest.mark.parametrize(("verb", "name"), RECIPES, ids=[f"{verb}-{name}" for verb, name in RECIPES])
def test_a_recipe_comes_back_unchanged_from_its_own_form(verb: str, name: str) -> None:
    config = recipes(verb)[name]()
    assert through_dagster(launchpad.form(config), type(config)) == config


@pytest.mark.parametrize(
    "config",
    [
        Everything(),
        Everything(count=9, share=0.5, model=Ridge(strength=2), extra=Trees(count=1), more=Part(depth=4, mode="q"), parts={}, hosts={}, tags=["y"], flag=False),
    ],
    ids=["defaults", "all changed"],
)
def test_every_shape_of_field_survives_as_a_default_and_as_what_somebody_typed(config: Everything) -> None:
    assert through_dagster(launchpad.form(config), Everything) == config
    assert through_dagster(launchpad.form(Everything()), Everything, launchpad.filled_in(config)) == config


def test_an_optional_part_can_be_switched_off_in_the_form() -> None:
    config = Everything(extra=Ridge(), more=Part())
    found = through_dagster(launchpad.form(config), Everything, {"extra": {"none": {}}, "more": None})
    assert found == Everything()


def test_a_misspelt_setting_is_refused_before_the_step_starts() -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="countt"):
        through_dagster(launchpad.form(Everything()), Everything, {"countt": 3})


def test_an_unknown_kind_is_refused_with_the_whole_menu() -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"ridge.*trees"):
        through_dagster(launchpad.form(Everything()), Everything, {"model": {"forest": {}}})


def test_a_value_out_of_bounds_is_refused_with_our_sentence_and_the_form_names_the_bounds() -> None:
    form = launchpad.form(Everything())
    assert form.model_fields["count"].description == "how many; at least 1, at most 9"
    with pytest.raises(ConfigError, match=r"Found 12 for 'count' of Everything, expected: input should be less than or equal to 9"):
        through_dagster(form, Everything, {"count": 12})
