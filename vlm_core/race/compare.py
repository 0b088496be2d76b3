"""`vlm compare-pretraining`: every recipe on one snapshot at the same pairs seen and over the same seeds, one evaluator, one leaderboard.

OUT as of 'vlm compare-models'; OUT.parts/runs/RECIPE/PAIRS-SEED/{model,evaluation} are the runs, found again by the next comparison.
"""

from vlm_core.race.cells import Course, Judges, brought, cell, chosen, said_of, settings
from vlm_core.race.config import ComparePretraining
from vlm_core.stage import Report, Stage


def compare_pretraining(config: ComparePretraining, stage: Stage) -> Report:
    """The verb. All settings are resolved before the first run."""
    judges = Judges(stage.input("shards"), stage.input("eval_sets"))
    cells = [cell(config, name, judges.shards) for name in chosen(config)]
    own = [one.name for one in cells if settings(config, one, 0, config.samples).loader.caption_weights != one.captions]
    course = Course(config, stage, config.base, len(cells) * config.seeds)
    found = course.run(cells, config.seeds, config.samples, judges)
    conditions = f"Every recipe saw {config.samples:,} pairs of the snapshot `{stage.versions.get('shards', '')}` in each of {config.seeds} runs. Captions are the raw ones"
    conditions += f", but for those that read others by design: {', '.join(f'`{name}`' for name in own)}." if own else "."
    conditions += brought(config, cells) + said_of(config)
    if config.changes:
        conditions += f" Changed for all: {', '.join(f'`{change}`' for change in config.changes)}."
    return course.judge(found, "Pre-training recipes at equal pairs seen", conditions)
