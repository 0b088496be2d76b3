"""The end of `make demo`: its table on records as runs write them, and its count of what was reused, from a real run's events."""

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipelines import demo
from pipelines.choices import MODELS
from pipelines.demo_table import TRAINED, table
from tests.data.small_world import write_inputs
from vlm_core.data.config import Shard
from vlm_core.run import run
from vlm_core.stage import Report, record_of, write_json


def record(data: Path, *asset: str, **said: object) -> None:
    """result.json as `run` writes it: its keys come back in alphabetic order."""
    folder = record_of(data.joinpath(*asset))
    folder.mkdir(parents=True)
    write_json(folder / "result.json", Report(**said).model_dump(mode="json"))  # type: ignore[arg-type]


def test_the_table_has_pairs_per_second_of_every_training_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    data.mkdir()
    shards = run("shard", Shard(held_out=0.3, samples_per_shard=12), write_inputs(tmp_path / "in"), data / "shards")
    seen = {"quick.auc": 0.91, "quick.text_recall_at_10": 0.25, "quick.image_recall_at_10": 0.2, "data_wait": 0.01, "captions.alt": 1.0, "collapsed": 0.0}
    for number, recipe in enumerate(MODELS):
        record(data, "pretrained", recipe, metrics={**seen, "final_loss": 2.5, "pairs_per_s": 1234.5 + number, "parameters": 9e6, "logit_scale": 20.0})
    both = {f"{name}.{key}": value for name, speed in (("student", 321.0), ("twin", 333.0)) for key, value in {**seen, "pairs_per_s": speed}.items()}
    record(data, "distilled", metrics=both)
    record(data, "transferred", "tip_adapter", "emoji", metrics={"acc1/16_shots": 0.7, "acc1/4_shots": 0.5, "acc1/zero_shot_text": 0.3})
    record(data, "registry", MODELS[0], tables={"registry": [{"name": "vlm-base", "version": 3, "aliases": "champion", "reason": "It is better."}]})
    lines = table(data).splitlines()
    (head,) = (line for line in lines if line.startswith("trained"))
    assert re.split(r"\s{2,}", head.strip()) == ["trained", *TRAINED]
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("pretrained/", "distilled/"))}
    assert cells[f"pretrained/{MODELS[0]}"] == ["1,234.500", "2.500", "0.910", "0.250", "0.200"]
    assert cells[f"pretrained/{MODELS[1]}"][0] == "1,235.500"
    assert cells["distilled/student"] == ["321.000", "-", "0.910", "0.250", "0.200"]
    assert cells["distilled/twin"][0] == "333.000"
    assert any(re.fullmatch(r"tip_adapter on emoji\s+accuracy: 4 shots 0.500, 16 shots 0.700, text alone 0.300", line) for line in lines)
    assert any(line.endswith(shards.data_version) for line in lines if line.startswith("snapshot"))
    assert any(re.match(r"vlm-base +version 3 .* champion: It is better\.", line) for line in lines)


def test_results_and_reused_ones_are_counted_from_the_events_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    @dg.asset
    def crawled() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"in": 12, "kept": 7, "reused": True})

    @dg.asset(deps=[crawled])
    def trained() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"pairs_per_s": 1500.0, "reused": False})

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([crawled, trained], instance=instance, tags={"demo": "mark"})
        run, made, kept = demo._follow(instance, subprocess.Popen([sys.executable, "-c", ""]), "mark")
    assert (run.run_id, made, kept) == (done.run_id, 2, 1)
    out = capsys.readouterr().out
    assert re.search(r"✓ crawled .*unchanged, reused", out)
    assert re.search(r"✓ trained .*pairs_per_s 1,500", out)
