"""`vlm sweep`: recipes x ways to filter the crawl, against plain CLIP on the unfiltered crawl, at equal pairs seen.

The base data hold every sample that any other way keeps, and the groups of their samples hold for all: what is held out is held out everywhere, and the
labelled test sets are apart from everything. Rounds before the last (successive halving, arXiv 1502.07943) see fewer pairs with one seed and drop what
falls behind; the p values of the last one count all candidates, because who came through was chosen on the same test samples.

OUT as of 'vlm compare-models'; OUT.parts/{filtered,shards}/NAME, eval_sets and runs are the parts, found again by the next sweep.
"""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlm_core.config import Config
from vlm_core.data.eval_sets.known import FILE as KNOWN_FILE
from vlm_core.errors import BudgetSpent, ConfigError
from vlm_core.race.cells import Cell, Course, Judges, brought, cell, chosen, home_of, said_of, settings
from vlm_core.race.config import RAW, Sweep, Variant
from vlm_core.run import load
from vlm_core.stage import Report, Stage


def rounds(config: Sweep, cells: int) -> list[tuple[int, int, int]]:
    """(cells, seeds, pairs of a run) of every round, the last one last. The base is one of the cells, and stays."""
    left, plan = cells, list[tuple[int, int, int]]()
    for rung in range(config.rungs):
        plan.append((left, 1, max(round(config.samples * config.keep ** (config.rungs - rung)), 1)))
        left = max(math.ceil((left - 1) * config.keep), 1) + 1
    return [*plan, (left, config.seeds, config.samples)]


def sweep(config: Sweep, stage: Stage) -> Report:
    """The verb. Raises BudgetSpent, before anything runs, for a plan that is larger than max_pairs."""
    cells = _cells(config, home_of(stage) / "shards")
    candidates, plan = len(cells), rounds(config, len(cells))
    planned = sum(count * seeds * pairs for count, seeds, pairs in plan)
    if planned > config.max_pairs:
        raise BudgetSpent(
            f"Found a plan of {planned:,} pairs ({', '.join(f'{c} cells x {s} seeds x {p:,}' for c, s, p in plan)}), expected at most max_pairs {config.max_pairs:,}; "
            f"set samples={int(config.samples * config.max_pairs / planned)}, or more rungs, or raise max_pairs."
        )
    filters = {name: load("filter", variant.filter, None, tuple(variant.changes))[1] for name, variant in config.data.items()}
    course = Course(config, stage, cells[0].name, sum(count * seeds for count, seeds, _ in plan))
    judges = _data(config, stage, course, filters)
    found: dict[str, Path] = {}
    for count, seeds, pairs in plan:
        if found:
            cells = _best(cells, found, config.primary, count)
        found = course.run(cells, seeds, pairs, judges)
    return course.judge(
        found, "Recipes by training data, against plain CLIP on the unfiltered crawl", _conditions(config, plan) + brought(config, cells), candidates
    )


def names_of(config: Sweep) -> list[str]:
    """Names of all candidates, the base first."""
    return [one.name for one in _cells(config, Path())]


def _cells(config: Sweep, shards: Path) -> list[Cell]:
    """The base first. Where a recipe says which captions it reads, training data that differ in captions only are the same to it: they are run once."""
    pairs = [(config.base, config.base_data), *((recipe, name) for name in config.data for recipe in chosen(config))]
    found: dict[tuple[str, str, tuple[str, ...]], Cell] = {}
    for recipe, name in pairs:
        data = config.data[name]
        one = cell(config, recipe, shards / name, f"{recipe}+{name}", data.captions)
        found.setdefault((settings(config, one, 0, config.samples).digest(), data.filter, tuple(data.changes)), one)
    return list(found.values())


def _best(cells: list[Cell], found: dict[str, Path], primary: str, count: int) -> list[Cell]:
    """The base, and the best of the others by the primary suite."""
    value = {name.rpartition("@")[0]: _value(path, primary) for name, path in found.items()}
    others = sorted((cell for cell in cells[1:] if cell.name in value), key=lambda cell: (-value[cell.name], cell.name))
    return [cells[0], *others[: count - 1]]


def _value(evaluation: Path, primary: str) -> float:
    rows: list[dict[str, Any]] = pq.read_table(evaluation / "metrics.parquet").to_pylist()
    found = [float(row["value"]) for row in rows if f"{row['dataset']}/{row['task']}/{row['metric']}" == primary]
    if not found:
        raise ConfigError(f"Found no suite {primary!r} in {evaluation}, expected the one that decides who goes on; change primary.")
    return found[0]


def _data(config: Sweep, stage: Stage, course: Course, filters: dict[str, Config]) -> Judges:
    """Shards of every way to filter, all with the groups of the base data, and the test sets."""
    parts, given = home_of(stage), {name: stage.input(name) for name in ("pairs", "images", "embeddings")}
    for name in [config.base_data, *(name for name in config.data if name != config.base_data)]:
        stage.progress(f"data: {name}", every_s=0)
        groups = {} if name == config.base_data else {"groups": parts / "filtered" / config.base_data}
        course.part("filter", config.data[name].filter, filters[name], {**given, **groups}, parts / "filtered" / name)
        inputs = {"pairs": given["pairs"], "images": given["images"], "filtered": parts / "filtered" / name, "captions": stage.input("captions")}
        course.part("shard", "", config.shard.merged({"grow": False}), inputs, parts / "shards" / name)
    knowing = {"embeddings": given["embeddings"]} if (given["embeddings"] / KNOWN_FILE).exists() else {}  # a filter network's: it knows pictures, too
    course.part("eval-sets", "", config.eval_sets, {"shards": parts / "shards" / config.base_data, **knowing}, parts / "eval_sets")
    return Judges(parts / "shards" / config.judged_on, parts / "eval_sets")


def _said(variant: Variant) -> str:
    if variant.captions == RAW:
        return "raw captions"
    return f"captions {', '.join(f'{origin} x {weight:g}' for origin, weight in variant.captions.items())}" if variant.captions else "all captions"


def _conditions(config: Sweep, plan: list[tuple[int, int, int]]) -> str:
    ways = "; ".join(
        f"`{name}`: filter {variant.filter}{''.join(f', {change}' for change in variant.changes)}" + f", {_said(variant)}"
        for name, variant in config.data.items()
    )
    steps = ", then ".join(f"{count} candidates x {seeds} seeds x {pairs:,} pairs" for count, seeds, pairs in plan)
    return f"{steps}. Training data: {ways}; recipes that say which captions they read keep theirs.{said_of(config)} All are judged on the held-out pairs of `{config.judged_on}`, which no training set holds."
