"""`vlm methods [FAMILY] [--json | --markdown]`: the catalogue, read from the menus (config.py) and the docstrings of the method files. Torch-free."""

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from vlm_core.config import Config, kinds
from vlm_core.distill.config import Terms
from vlm_core.errors import UnknownKind, did_you_mean
from vlm_core.models.config import Fusion, ImageTower, TextTower, VisualTokens
from vlm_core.objectives.config import Objectives
from vlm_core.run import recipes
from vlm_core.stage import PACKAGE
from vlm_core.train.config import Pretrain
from vlm_core.transfer.config import Method


class Row(NamedTuple):
    """One method: what it does, where it comes from, what it needs, which official arrays check it."""

    family: str
    kind: str
    does: str
    paper: str
    setting: str
    needs: str
    checked_by: str


def _optional(schema: type[Config]) -> dict[str, type[Config]]:
    """Combine-many menu: the optional fields of a schema and their own schemas."""
    fields = schema.model_fields.items()
    return {name: part for name, field in fields for part in get_args(field.annotation) if isinstance(part, type) and issubclass(part, Config)}


def families() -> dict[str, tuple[Path, Mapping[str, type[Config]], str, str]]:
    """Family -> (folder of its method files, menu, setting and needs where the file does not say)."""
    return {
        "towers": (PACKAGE / "models", {**kinds(ImageTower), **kinds(TextTower), **kinds(Fusion), **kinds(VisualTokens)}, "pre-training", "pairs"),
        "objectives": (PACKAGE / "objectives", _optional(Objectives), "pre-training", "pairs"),
        "transfer": (PACKAGE / "transfer", kinds(Method), "few-shot", "cached features"),
        "distill": (PACKAGE / "distill", _optional(Terms), "distillation", "pairs, a teacher"),
    }


RECIPES = "recipes"


def catalogue(family: str = "") -> list[Row]:
    """All methods, or those of one family. Raises UnknownKind for a family that does not exist."""
    menu = families()
    if family and family not in (*menu, RECIPES):
        raise UnknownKind(f"Found the family {family!r}, expected a known one; {did_you_mean(family, (*menu, RECIPES))}")
    found = [
        _row(name, kind, schema, folder / f"{kind}.py", setting, needs)
        for name, (folder, kinds_of, setting, needs) in menu.items()
        if family in ("", name)
        for kind, schema in kinds_of.items()
    ]
    return found + ([_recipe(name, make) for name, make in recipes("pretrain").items()] if family in ("", RECIPES) else [])


def _recipe(name: str, make: Callable[[], Config]) -> Row:
    """A recipe of pre-training: what it is, and what its paper leaves open or had no official code for, as its docstring says."""
    sentence, config = " ".join((make.__doc__ or "").split()), cast(Pretrain, make())
    paper = re.search(r"arXiv \d{4}\.\d{4,5}", sentence)
    size = "two cores" if name.endswith(("_tiny", "_packaged")) else "the paper's size"
    does = re.sub(r"\([,;] ", "(", re.sub(r"(, )?arXiv \d{4}\.\d{4,5}", "", sentence)).replace(" ()", "")
    return Row(RECIPES, name, does, paper.group() if paper else "", size, ", ".join(config.objectives.chosen()), "")


def _row(family: str, kind: str, schema: type[Config], file: Path, setting: str, needs: str) -> Row:
    sentence = " ".join((schema.__doc__ or "").split())
    tree = ast.parse(file.read_text())
    about = ast.get_docstring(tree) or ""
    said = dict(_constants(tree))
    paper = re.search(r"arXiv \d{4}\.\d{4,5}", sentence) or re.search(r"arXiv \d{4}\.\d{4,5}", about)
    more = sorted(word.replace("_", " ") for word in getattr(schema, "needs", ()))  # of an objective
    return Row(
        family, kind, re.sub(r" \([^()]*arXiv[^()]*\)", "", sentence), paper.group() if paper else "", said.get("setting", setting),
        said.get("needs", ", ".join([needs, *more])), ", ".join(checks(file.read_text())),
    )  # fmt: skip


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """`setting = Setting.FEW_SHOT` in a class body, as words."""
    words = {"TEXT_TOWER": "gradient through the text tower", "VISION_TOWER": "gradient through the image tower", "FEATURES": "cached features"}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("setting", "needs")
            and isinstance(node.value, ast.Attribute)
        ):
            yield node.targets[0].id, words.get(node.value.attr, node.value.attr.lower().replace("_", "-"))


def checks(source: str) -> list[str]:
    """What a source file names in its docstrings: golden `family/name` or `family/{a,b}`; where no official code is public, the tests that compute by hand."""
    found: list[str] = []
    for name in re.findall(r"`((?:data|pretraining|transfer|distillation|evaluation)/[\w{},]+)`", source):
        family, _, rest = name.partition("/")
        found += [f"{family}/{part}" for part in rest.strip("{}").split(",")]
    return list(dict.fromkeys([*found, *re.findall(r"`(tests/[\w/]+\.py)`", source)]))


def markdown(rows: list[Row]) -> str:
    """The table of docs/methods.md."""
    lines = [f"| {row.family} | `{row.kind}` | {row.does} | {row.paper} | {row.setting} | {row.needs} | {row.checked_by} |" for row in rows]
    return "\n".join(["| family | kind | what it does | paper | setting | needs | checked by |", "|---|---|---|---|---|---|---|", *lines])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vlm methods", description="the catalogue of methods")
    parser.add_argument("family", nargs="?", default="", help=", ".join([*families(), RECIPES]))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/methods.md")
    args = parser.parse_args(words)
    rows = catalogue(args.family)
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    elif args.markdown:
        print(markdown(rows))
    else:
        print(_plain(rows))
    return 0


def _plain(rows: list[Row]) -> str:
    table: list[Any] = [
        ("family", "kind", "paper", "setting", "needs", "checked by"),
        *((r.family, r.kind, r.paper, r.setting, r.needs, r.checked_by) for r in rows),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
