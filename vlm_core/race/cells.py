"""The parts of a comparison: each is a verb in a process of its own, reused if it is there already, so that what was stopped goes on."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlm_core import errors
from vlm_core.config import Config
from vlm_core.errors import ConfigError, LaunchError, VlmError, did_you_mean
from vlm_core.evaluate.config import CompareModels
from vlm_core.race.config import Race
from vlm_core.run import load, recipes
from vlm_core.stage import Report, Stage, write_json

PATIENT = 20  # from this exit code on, the same command will not succeed later


class Cell(NamedTuple):
    """One recipe on one training set."""

    name: str
    recipe: str
    shards: Path
    changes: tuple[str, ...] = ()


class Judges(NamedTuple):
    """What all models are measured on."""

    shards: Path
    eval_sets: Path


def chosen(config: Race) -> list[str]:
    """The recipes that take part, the base first. Raises ConfigError for a name that does not exist."""
    menu = recipes("pretrain")
    names = config.recipes or [name for name in menu if name.endswith("_tiny")]
    for name in (config.base, *names):
        if name not in menu:
            raise ConfigError(f"Found the recipe {name!r}, expected one of pretrain; {did_you_mean(name, menu)}")
    return list(dict.fromkeys([config.base, *names]))


def settings(config: Race, cell: Cell, seed: int, samples: int) -> Config:
    """Settings of one run: those of its recipe, at the pairs and with the seed of the comparison."""
    waiver = ("loader.despite_takedowns=true",) if config.evaluate.despite_takedowns else ()
    return load("pretrain", cell.recipe, None, (*config.changes, *cell.changes, *waiver, f"seed={seed}", f"fit.samples={samples}"))[1]


def home_of(stage: Stage) -> Path:
    """Where the parts lie: beside the output, so that another comparison into it finds them."""
    folder = stage.final.with_name(f"{stage.final.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Course:
    """Runs the parts, one after the other: each uses all cores itself."""

    def __init__(self, config: Race, stage: Stage, base: str, total: int) -> None:
        self.config, self.stage, self.base, self.total, self.done = config, stage, base, total, 0
        self.reused, self.failed = 0, dict[str, str]()  # name of a cell -> why it has no result

    def run(self, cell: Cell, seed: int, samples: int, judges: Judges) -> Path | None:
        """Train and evaluate; the evaluation's folder, or None if the cell cannot be run as it is (its sentence is kept)."""
        self.done += 1
        if cell.name in self.failed:
            return None
        folder = home_of(self.stage) / "runs" / cell.name / f"{samples}-{seed}"
        self.stage.progress(f"{cell.name}, seed {seed}, {samples:,} pairs: run", self.done, self.total, every_s=0)
        try:
            self.part("pretrain", cell.recipe, settings(self.config, cell, seed, samples), {"shards": cell.shards}, folder / "model")
            inputs = {"model": folder / "model", "shards": judges.shards, "eval_sets": judges.eval_sets}
            self.part("evaluate", "", self.config.evaluate, inputs, folder / "evaluation")
        except VlmError as error:
            if error.exit_code < PATIENT or cell.name == self.base:
                raise
            self.failed[cell.name] = f"{type(error).__name__}: {error}"
            self.stage.progress(f"{cell.name} takes no part: {error}")
            return None
        return folder / "evaluation"

    def part(self, verb: str, recipe: str, config: Config, inputs: Mapping[str, Path], out: Path) -> Report:
        """One verb; it decides itself whether its result is there already."""
        out.parent.mkdir(parents=True, exist_ok=True)
        report = launch(verb, recipe, config, inputs, out, getattr(self.stage.tracker, "run_id", ""))
        self.reused += report.reused
        return report

    def judge(self, found: Mapping[str, Path], title: str, conditions: str, candidates: int = 0) -> Report:
        """The leaderboard over evaluations by MODEL@SEED, published by this stage."""
        from vlm_core.evaluate.leaderboard import compare_models

        missing = "".join(f"\n\nWithout a result: `{name}` ({why})" for name, why in sorted(self.failed.items()))
        rules = CompareModels(base=self.base, primary=self.config.primary, title=title, conditions=conditions + missing, candidates=candidates)
        inputs = {f"evaluations.{name}": path for name, path in found.items()}
        said = compare_models(
            rules, Stage("compare-models", inputs, self.stage.out, self.stage.state, self.stage.pictures, self.stage.tracker, self.stage.run_id)
        )
        counts = {**said.counts, "parts_reused": self.reused, "failed": len(self.failed)}
        tables = {**said.tables, **({"without a result": [{"model": name, "why": why} for name, why in self.failed.items()]} if self.failed else {})}
        return said.model_copy(update={"counts": counts, "tables": tables})


def launch(verb: str, recipe: str, config: Config, inputs: Mapping[str, Path], out: Path, parent: str = "") -> Report:
    """`vlm VERB` in a process of its own that dies with this one. Raises the error that the verb ended with.

    Settings and paths are those of `run`; `parent` is the MLflow run under which this one is filed.
    """
    spec = {"verb": verb, "recipe": recipe, "config": config.model_dump(mode="json"), "inputs": {name: str(path) for name, path in inputs.items()}}
    environment = {**os.environ, "VLM_PARENT_PID": str(os.getpid()), **({"VLM_MLFLOW_PARENT": parent} if parent else {})}
    with tempfile.TemporaryDirectory(prefix="vlm-part-") as tmp:
        write_json(Path(tmp) / "spec.json", spec)
        words = [sys.executable, "-W", "ignore", "-m", "vlm_core", verb, "--spec", str(Path(tmp) / "spec.json"), "--out", str(out), "--json"]
        with (Path(tmp) / "stdout").open("w+") as stdout:
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace")
            try:
                lines = _said(process)
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            stdout.seek(0)
            text = stdout.read()
    if code:
        raise _error(verb, code, lines, out)
    return Report.model_validate_json(text[text.index("{\n") :])


def _said(process: "subprocess.Popen[str]") -> list[str]:
    """The last lines of its stderr, passed on as they come."""
    lines: list[str] = []
    for line in process.stderr or ():
        print(line, end="", file=sys.stderr, flush=True)
        lines = [*lines[-49:], line.rstrip("\n")]
    return lines


def _error(verb: str, code: int, lines: Sequence[str], out: Path) -> BaseException:
    if code == 130:
        return KeyboardInterrupt()
    for line in reversed(lines):
        name, _, sentence = line.partition(": ")
        kind = getattr(errors, name, None) if name.isidentifier() else None
        if isinstance(kind, type) and issubclass(kind, VlmError):
            return kind(sentence)
    last = lines[-1] if lines else "it said nothing"
    return LaunchError(
        f"Found that 'vlm {verb}' for {out} ended with exit code {code} ({last}), expected 0; read its lines above and give the same command again."
    )
