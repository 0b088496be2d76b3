"""The one seam, with a real verb: reuse, refusal, nothing lost; and the command line around it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.small_world import write_inputs
from vlm_core import stage as stages
from vlm_core.cli import main
from vlm_core.data.config import EvalSets, Shard
from vlm_core.data.crawl.config import Crawl, Site, Warc
from vlm_core.data.lineage.catalog import open_catalog
from vlm_core.errors import BadManifest, ConfigError, MissingInput, OutputBusy
from vlm_core.run import files_named, load, replay, run

CONFIG = Shard(held_out=0.3, samples_per_shard=12)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def test_the_same_run_is_reused_and_a_changed_input_setting_or_output_is_not(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "shards"
    first = run("shard", CONFIG, inputs, out, recipe="demo_shard")
    again = run("shard", CONFIG, inputs, out)
    assert (first.reused, again.reused) == (False, True)
    assert again.model_copy(update={"reused": False}).model_dump(mode="json") == first.model_dump(mode="json")
    other = run("shard", CONFIG.but("seed=5"), inputs, out)
    assert not other.reused
    assert other.data_version != first.data_version
    back = run("shard", CONFIG, inputs, out)
    assert (back.reused, back.data_version) == (False, first.data_version)
    (out / "train-00000.tar").write_bytes(b"someone wrote here")
    assert not run("shard", CONFIG, inputs, out).reused
    table = pq.read_table(inputs["filtered"] / "kept.parquet")
    pq.write_table(table.slice(3), inputs["filtered"] / "kept.parquet")
    fewer = run("shard", CONFIG, inputs, out)
    assert (fewer.reused, fewer.counts["in"]) == (False, 57)


def test_the_record_of_a_run_is_complete_and_can_be_replayed(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "shards"
    report = run("shard", CONFIG, inputs, out, recipe="demo_shard")
    record = stages.record_of(out)
    assert json.loads((record / "result.json").read_text())["data_version"] == report.data_version == stages.data_version(out)
    assert not (record / "state").exists()
    assert (record / "pictures" / "samples.png").read_bytes()[:4] == b"\x89PNG"
    verb, recipe, config, given = replay(record / "spec.json")
    assert (verb, recipe, config, given) == ("shard", "demo_shard", CONFIG, inputs)
    con = open_catalog(tmp_path / "home" / "catalog")
    assert con.execute("SELECT kind, recipe, status, output, path FROM runs").fetchall() == [("shard", "demo_shard", "ok", report.data_version, str(out))]
    named = con.execute("SELECT name, ref FROM run_inputs ORDER BY name").fetchall()
    assert named == sorted((name, stages.data_version(path)) for name, path in inputs.items())
    assert con.execute("SELECT snapshot_md5 FROM snapshots").fetchall() == [(report.data_version,)]


def test_a_run_that_fails_leaves_what_was_published_before(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "shards"
    good = run("shard", CONFIG, inputs, out)
    path = inputs["images"] / "00001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadManifest, match="00001.tar"):
        run("shard", CONFIG, inputs, out)
    assert stages.data_version(out) == good.data_version
    assert "Found" in subprocess.run(
        [sys.executable, "-m", "vlm_core", "shard", *[f"--in={k}={v}" for k, v in inputs.items()], "--out", str(out)], capture_output=True, text=True, check=False
    ).stderr.splitlines()[-1]  # fmt: skip
    assert stages.data_version(out) == good.data_version


def test_kill_9_at_random_moments_then_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", n=600)
    wanted = run("shard", CONFIG, inputs, tmp_path / "undisturbed").data_version
    out = tmp_path / "shards"
    words = [sys.executable, "-m", "vlm_core", "shard", "--set", "held_out=0.3", "--set", "samples_per_shard=12", "--out", str(out)]
    words += [part for name, path in inputs.items() for part in ("--in", f"{name}={path}")]
    for moment in (0.2, 0.5):
        victim = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert victim.stderr is not None
        victim.stderr.readline()  # the first line of progress: it is writing
        time.sleep(moment / 10)
        victim.kill()
        assert victim.wait() in (-signal.SIGKILL, 0)
        victim.stderr.close()
        assert not out.exists() or stages.data_version(out) == wanted
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    assert stages.data_version(out) == wanted
    assert sorted(path.name for path in tmp_path.glob("shards*")) == ["shards", "shards.run"]


def test_an_output_folder_in_use_is_refused_with_the_exit_code_for_later(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "shards"
    with stages.lease(stages.record_of(out)), pytest.raises(OutputBusy, match=f"in use by process {os.getpid()}"):
        run("shard", CONFIG, inputs, out)


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    with pytest.raises(MissingInput, match="Found none given for the input 'captions' of 'vlm shard'.*--in captions=PATH"):
        run("shard", CONFIG, {name: path for name, path in inputs.items() if name != "captions"}, tmp_path / "out")
    with pytest.raises(ConfigError, match="Found the input 'caption' for 'vlm shard', expected a known one; did you mean 'captions'?"):
        run("shard", CONFIG, {**inputs, "caption": tmp_path}, tmp_path / "out")
    with pytest.raises(ConfigError, match="Found the verb 'shards', expected a known one; did you mean 'shard'?"):
        run("shards", CONFIG, inputs, tmp_path / "out")


def test_params_choose_the_recipe_and_its_changes(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("shard:\n  web_shard: {seed: 3}\n  demo_shard: {}\n")
    assert load("shard", params=params) == ("web_shard", Shard(held_out=0.01, seed=3))
    assert load("shard", "demo_shard", params, ("seed=9",)) == ("demo_shard", Shard(samples_per_shard=500, seed=9))
    params.write_text("sharding: {}\n")
    with pytest.raises(ConfigError, match="Found the section 'sharding' in .*params.yaml, expected a verb; did you mean 'shard'?"):
        load("shard", params=params)
    with pytest.raises(ConfigError, match="Found the recipe 'demo' for 'vlm shard', expected a known one; .*Choose one of: demo_shard, web_shard"):
        load("shard", "demo")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["shrad"], 20, "ConfigError: Found 'shrad', expected a verb; did you mean 'shard'?"),
        (["shard"], 20, "ConfigError: The following arguments are required: --out; see 'vlm shard --help'."),
        (
            ["shard", "--out", "x", "--set", "sed=1"],
            20,
            "ConfigError: Found the unknown setting 'sed' of Shard, expected one that exists; did you mean 'seed'?",
        ),
        (["shard", "--out", "x", "--in", "pairs"], 20, "ConfigError: Found --in 'pairs', expected NAME=PATH"),
        (["shard", "--out", "x", "--set", "held_out=1"], 20, "ConfigError: Found 1 for 'held_out' of Shard, expected: input should be less than 1"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_its_exit_code(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_the_dry_run_prints_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["shard", "--recipe", "web_shard", "--set", "seed=4", "--out", str(tmp_path / "o"), "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "format: tar\ngrow: true\nseed: 4\nheld_out: 0.01\nsamples_per_shard: 10000\nshard_mb: 256\ngroup:\n  pdq_bits: 40\n  phash_bits: 4\n  max_credit_share: 0.02\nblur_faces: false\n"
    )
    assert not (tmp_path / "o").exists()


def test_a_file_that_a_setting_names_counts_with_its_bytes(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.tar"
    corpus.write_bytes(b"one")
    config = EvalSets(corpus=str(corpus))
    assert files_named(config) == {"corpus": hashlib.md5(b"one").hexdigest()}
    corpus.write_bytes(b"two")
    assert files_named(config) == {"corpus": hashlib.md5(b"two").hexdigest()}
    assert files_named(EvalSets(corpus=str(tmp_path / "absent"))) == {}


def test_a_live_site_and_a_folder_are_read_again_and_an_archive_with_a_hash_is_not(tmp_path: Path) -> None:
    archive = tmp_path / "pages.warc.gz"
    archive.touch()
    assert Crawl(source=Site(start_urls=["http://example.org/"])).reads_the_world
    assert Crawl(source=Warc(path=str(tmp_path))).reads_the_world
    assert not Crawl(source=Warc(path=str(archive))).reads_the_world
    assert not Crawl().reads_the_world


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m vlm_core show filter | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
