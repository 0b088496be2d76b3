"""What params.yaml chooses, and where the project lies."""

import os
from pathlib import Path

import yaml

from vlm_core.config import Config
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


MODELS = listed("pretrain")
BASE = MODELS[0]  # the model that is adapted and distilled
