"""`vlm compare-pretraining`: every recipe on one snapshot at the same pairs seen and over the same seeds, one evaluator, one leaderboard.

OUT as of 'vlm compare-models'; OUT.parts/runs/RECIPE/PAIRS-SEED/{model,evaluation} are the runs, found again by the next comparison.
"""

from vlm_core.race.cells import Cell, Course, Judges, chosen, settings
from vlm_core.race.config import ComparePretraining
from vlm_core.stage import Report, Stage


def compare_pretraining(config: ComparePretraining, stage: Stage) -> Report:
    """The verb. All settings are resolved before the first run; seeds go round by round, so that a stopped comparison has whole ones."""
    judges = Judges(stage.input("shards"), stage.input("eval_sets"))
    cells = [Cell(name, name, judges.shards) for name in chosen(config)]
    for cell in cells:
        settings(config, cell, 0, config.samples)
    course = Course(config, stage, config.base, len(cells) * config.seeds)
    found = {}
    for seed in range(config.seeds):
        for cell in cells:
            if evaluation := course.run(cell, seed, config.samples, judges):
                found[f"{cell.name}@{seed}"] = evaluation
    conditions = f"Every recipe saw {config.samples:,} pairs of the snapshot `{stage.versions.get('shards', '')}` in each of {config.seeds} runs."
    if config.changes:
        conditions += f" Changed for all: {', '.join(f'`{change}`' for change in config.changes)}."
    whole = {name: path for name, path in found.items() if name.partition("@")[0] not in course.failed}
    return course.judge(whole, "Pre-training recipes at equal pairs seen", conditions)
