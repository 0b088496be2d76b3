"""What params.yaml chooses, and where the project lies."""

import os
import re
from pathlib import Path

import yaml

from vlm_core.config import Config
from vlm_core.errors import ConfigError
from vlm_core.run import load

CODE = Path(__file__).parent.parent  # this checkout
ROOT = Path(os.environ.get("VLM_ROOT", CODE))  # the project: params.yaml, dvc.yaml, data/
PARAMS = ROOT / "params.yaml"


def chosen(verb: str, recipe: str | None = None) -> tuple[str, Config]:
    """(recipe, settings) of a verb as params.yaml has them."""
    return load(verb, recipe, PARAMS)


def listed(verb: str) -> list[str]:
    """The recipes of a verb that params.yaml lists: what the main job runs. The first one is the verb's default."""
    return list((yaml.safe_load(PARAMS.read_text()) or {}).get(verb) or {})


def batches() -> dict[str, str]:
    """Further sources, each crawled by itself: name -> recipe, for every recipe of `crawl` after the first. `table_crawl@laion` is the batch laion.

    Raises ConfigError for a name that cannot be that of a folder, of a partition and of a section of the Launchpad at once.
    """
    found: dict[str, str] = {}
    for recipe in listed("crawl")[1:]:
        name = recipe.rpartition("@")[2]
        if name in found or hasattr(Config, name) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"Found the source {recipe!r} under 'crawl' in {PARAMS}, expected a name of its own in small letters, digits and '_'; "
                              "write RECIPE@NAME.")  # fmt: skip
        found[name] = recipe
    return found


def mixed() -> dict[str, Path]:
    """Further snapshots that recipes of params.yaml train on (`loader.mix`), as inputs of 'vlm eval-sets': shards.NAME -> folder."""
    found: dict[str, Path] = {}
    for verb in ("pretrain", "distil"):
        for recipe in listed(verb):
            settings = chosen(verb, recipe)[1].model_dump(mode="json")
            for name, more in settings.get("student", settings)["loader"]["mix"].items():
                if (folder := Path(more["shards"])) not in found.values():
                    found[f"shards.{name}" if f"shards.{name}" not in found else f"shards.{verb}.{recipe}.{name}"] = folder
    return found


MODELS = listed("pretrain")
BASE = MODELS[0]  # the model that is adapted and distilled
