"""The parts of a comparison: each is a verb in a process of its own, reused if it is there already, so that what was stopped goes on."""

import statistics
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, cast

from vlm_core.config import Config
from vlm_core.errors import ConfigError, VlmError, did_you_mean
from vlm_core.evaluate.config import CompareModels
from vlm_core.race.config import RAW, Composed, Race
from vlm_core.race.launch import Launcher, environment_for
from vlm_core.run import load, recipes
from vlm_core.stage import Report, Stage
from vlm_core.train.config import Pretrain

PATIENT = 20  # from this exit code on, the same command will not succeed later


class Cell(NamedTuple):
    """One candidate on one training set."""

    name: str
    candidate: str  # a recipe, or a variant of one
    recipe: str
    shards: Path
    captions: Mapping[str, float] = RAW  # how often one is chosen, by origin, where the recipe does not say
    changes: tuple[str, ...] = ()  # of its own


class Judges(NamedTuple):
    """What all models are measured on."""

    shards: Path
    eval_sets: Path


def chosen(config: Race) -> list[str]:
    """Recipes and variants that take part, the base first. Raises ConfigError for a recipe that does not exist, or a variant that is called like one."""
    menu = recipes("pretrain")
    names = config.recipes or [name for name in menu if name.endswith("_tiny")]
    for name in (config.base, *names, *(variant.recipe for variant in config.variants.values())):
        if name not in menu:
            raise ConfigError(f"Found the recipe {name!r}, expected one of pretrain; {did_you_mean(name, menu)}")
    if taken := [name for name in config.variants if name in menu]:
        raise ConfigError(f"Found the variant {taken[0]!r}, which is the name of a recipe, expected one of its own; rename it.")
    return list(dict.fromkeys([config.base, *names, *config.variants]))


def cell(config: Race, name: str, shards: Path, full: str = "", captions: Mapping[str, float] = RAW) -> Cell:
    """The cell of a recipe or variant on a training set; `full` is its name there."""
    variant = config.variants.get(name, Composed(recipe=name))
    return Cell(full or name, name, variant.recipe, shards, captions, tuple(variant.changes))


def said_of(config: Race) -> str:
    """What the variants are, for the page."""
    return "".join(f" `{name}`: {variant.recipe} with {', '.join(f'`{change}`' for change in variant.changes)}." for name, variant in config.variants.items())


def brought(config: Race, cells: Sequence[Cell]) -> str:
    """Whose models hold weights that did not come from the pairs of the comparison, for the page."""
    found = {one.candidate: settings(config, one, 0, config.samples).model.packaged() for one in cells}
    said = ", ".join(f"`{name}` ({' and '.join(weights)})" for name, weights in found.items() if weights)
    return f" Not from scratch, with packaged weights: {said}." if said else ""


def settings(config: Race, cell: Cell, seed: int, samples: int) -> Pretrain:
    """Settings of one run: those of its recipe, at the pairs and with the seed of the comparison, reading the cell's captions unless it says which."""
    waiver = ("loader.despite_takedowns=true",) if config.evaluate.despite_takedowns else ()
    own = cast(Pretrain, load("pretrain", cell.recipe, None, (*cell.changes, *config.changes, *waiver, f"seed={seed}", f"fit.samples={samples}"))[1])
    return own if chooses_captions(own) else own.merged({"loader": {"caption_weights": dict(cell.captions)}})


def chooses_captions(own: Pretrain) -> bool:
    """Whether a recipe says itself which captions it reads: two at once, or one by weight, schedule or score."""
    read = own.loader
    return bool(read.second_caption or read.caption_weights or read.caption_schedule or read.caption_temperature)


def home_of(stage: Stage) -> Path:
    """Where the parts lie: beside the output, so that another comparison into it finds them."""
    folder = stage.final.with_name(f"{stage.final.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Course:
    """Runs the parts, `side_by_side` at a time, and remembers what they cost."""

    def __init__(self, config: Race, stage: Stage, base: str, total: int) -> None:
        self.config, self.stage, self.base, self.total, self.done = config, stage, base, total, 0
        self.reused, self.failed = 0, dict[str, str]()  # name of a cell -> why it has no result
        self.costs: dict[tuple[str, int], list[tuple[Report, Report]]] = {}  # (cell, pairs) -> reports of training and evaluation
        self._launcher = Launcher(environment_for(config.side_by_side, config.threads, getattr(stage.tracker, "run_id", "")))
        self._lock = threading.Lock()

    def run(self, cells: Sequence[Cell], seeds: int, samples: int, judges: Judges) -> dict[str, Path]:
        """Train and evaluate; evaluations by NAME@SEED, without those of cells that cannot be run as they are (their sentences are kept).

        Seeds go round by round, so that a stopped comparison has whole ones. What ends one run for another reason ends all.
        """
        with ThreadPoolExecutor(self.config.side_by_side) as pool:
            waiting: dict[str, Future[Path | None]] = {}
            try:
                for seed in range(seeds):
                    for cell in cells:
                        waiting[f"{cell.name}@{seed}"] = pool.submit(self._one, cell, seed, samples, judges)
                for ended in as_completed(waiting.values()):
                    ended.result()
            except BaseException:
                for one in waiting.values():
                    one.cancel()
                self._launcher.end()
                raise
        found = {name: evaluation for name, one in waiting.items() if (evaluation := one.result())}
        return {name: evaluation for name, evaluation in found.items() if name.rpartition("@")[0] not in self.failed}

    def _one(self, cell: Cell, seed: int, samples: int, judges: Judges) -> Path | None:
        folder = home_of(self.stage) / "runs" / cell.name / f"{samples}-{seed}"
        with self._lock:
            self.done += 1
            if cell.name in self.failed:
                return None
            self.stage.progress(f"{cell.name}, seed {seed}, {samples:,} pairs: run", self.done, self.total, every_s=0)
        who = f"{cell.name}@{seed} " if self.config.side_by_side > 1 else ""
        try:
            trained = self.part("pretrain", cell.recipe, settings(self.config, cell, seed, samples), {"shards": cell.shards}, folder / "model", who)
            inputs = {"model": folder / "model", "shards": judges.shards, "eval_sets": judges.eval_sets}
            judged = self.part("evaluate", "", self.config.evaluate, inputs, folder / "evaluation", who)
        except VlmError as error:
            if error.exit_code < PATIENT or cell.name == self.base:
                raise
            with self._lock:
                self.failed[cell.name] = f"{type(error).__name__}: {error}"
                self.stage.progress(f"{cell.name} takes no part: {error}", every_s=0)
            return None
        with self._lock:
            self.costs.setdefault((cell.name, samples), []).append((trained, judged))
        return folder / "evaluation"

    def part(self, verb: str, recipe: str, config: Config, inputs: Mapping[str, Path], out: Path, who: str = "") -> Report:
        """One verb; it decides itself whether its result is there already."""
        out.parent.mkdir(parents=True, exist_ok=True)
        report = self._launcher.verb(verb, recipe, config, inputs, out, who)
        with self._lock:
            self.reused += report.reused
        return report

    def judge(self, found: Mapping[str, Path], title: str, conditions: str, candidates: int = 0) -> Report:
        """The leaderboard over evaluations by MODEL@SEED, published by this stage."""
        from vlm_core.evaluate.leaderboard import compare_models

        missing = "".join(f"\n\nWithout a result: `{name}` ({why})" for name, why in sorted(self.failed.items()))
        costs = cost_rows(self.costs, {name.rpartition("@")[0] for name in found})
        rules = CompareModels(
            base=self.base, primary=self.config.primary, title=title, conditions=conditions + missing, candidates=candidates, pairs_on="data",
            appendix=cost_page(costs),
        )  # fmt: skip
        inputs = {f"evaluations.{name}": path for name, path in found.items()}
        said = compare_models(
            rules, Stage("compare-models", inputs, self.stage.out, self.stage.state, self.stage.pictures, self.stage.tracker, self.stage.run_id)
        )
        counts = {**said.counts, "parts_reused": self.reused, "failed": len(self.failed)}
        tables = {
            **said.tables,
            "cost": costs,
            **({"without a result": [{"model": name, "why": why} for name, why in self.failed.items()]} if self.failed else {}),
        }
        return said.model_copy(update={"counts": counts, "tables": tables})


def cost_rows(costs: Mapping[tuple[str, int], Sequence[tuple[Report, Report]]], names: set[str]) -> list[dict[str, Any]]:
    """Means over seeds of what the runs themselves said, at the most pairs that a cell saw."""
    most = {name: pairs for name, pairs in sorted(costs) if name in names}
    return [
        {
            "model": name, "pairs": pairs, "pairs per second": round(statistics.fmean(trained.metrics["pairs_per_s"] for trained, _ in costs[name, pairs]), 1),
            "minutes of training": round(statistics.fmean(trained.seconds for trained, _ in costs[name, pairs]) / 60, 2),
            "minutes of evaluation": round(statistics.fmean(judged.seconds for _, judged in costs[name, pairs]) / 60, 2),
            "peak MB": round(max(trained.peak_memory_mb for trained, _ in costs[name, pairs])),
        }
        for name, pairs in most.items()
    ]  # fmt: skip


def cost_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people, slowest first."""
    if not rows:
        return ""
    head = f"| {' | '.join(rows[0])} |\n|---|{'---:|' * (len(rows[0]) - 1)}\n"
    lines = "\n".join(
        f"| {' | '.join(f'{value:,}' if isinstance(value, int) else str(value) for value in row.values())} |"
        for row in sorted(rows, key=lambda row: -row["minutes of training"])
    )
    return f"## Cost\n\nWhat the runs reported themselves, means over seeds; without the start of their processes.\n\n{head}{lines}\n"
