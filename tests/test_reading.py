"""Nobody pulls a folder away from under those who read it: real processes, real locks, real SIGKILL."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.small_world import write_inputs
from vlm_core import stage as stages
from vlm_core.data.config import Shard
from vlm_core.errors import OutputBusy
from vlm_core.reading import reading
from vlm_core.run import run

CONFIG = Shard(held_out=0.3, samples_per_shard=12)
READ = """
import os, sys, time
from pathlib import Path
from vlm_core.reading import reading
if len(sys.argv) > 3 and os.getuid() == 0:
    os.setuid(65534)  # nobody: may read, may not write
with reading([Path(sys.argv[1])], Path("/nowhere.run")):
    print("reads", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@contextmanager
def reader(path: Path, seconds: float, *more: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, "-c", READ, str(path), str(seconds), *more], text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def made(tmp_path: Path) -> tuple[dict[str, Path], Path]:
    """The inputs of a verb, and what it once published."""
    inputs, out = write_inputs(tmp_path / "in"), tmp_path / "shards"
    run("shard", CONFIG, inputs, out)
    return inputs, out


@pytest.mark.parametrize("below", ["", "manifest.json"])
def test_a_folder_that_somebody_reads_is_not_replaced_and_the_reader_is_named(
    made: tuple[dict[str, Path], Path], below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, out = made
    before = stages.data_version(out)
    monkeypatch.setenv("VLM_PUBLISH_WAIT_S", "0.3")
    with reader(out / below, 60) as process, pytest.raises(OutputBusy, match=f"Found {out} read by process {process.pid} .*VLM_PUBLISH_WAIT_S") as refused:
        run("shard", CONFIG.but("seed=5"), inputs, out)
    assert refused.value.exit_code == 10
    assert stages.data_version(out) == before
    after = run("shard", CONFIG.but("seed=5"), inputs, out)  # the reader died of SIGKILL: its lock went with it
    assert after.data_version == stages.data_version(out) != before
    assert sorted(path.name for path in out.parent.glob("shards*")) == ["shards", "shards.run"]


def test_publishing_waits_for_a_reader_that_ends(made: tuple[dict[str, Path], Path], capsys: pytest.CaptureFixture[str]) -> None:
    inputs, out = made
    before = stages.data_version(out)
    with reader(out, 1.5) as process:
        report = run("shard", CONFIG.but("seed=5"), inputs, out)
        assert process.wait(10) == 0
        assert capsys.readouterr().err.count(f"{out} is read by process {process.pid}; the new one takes its place") == 1
    assert report.data_version != before


def test_what_has_not_changed_is_reused_while_others_read_it(made: tuple[dict[str, Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, out = made
    monkeypatch.setenv("VLM_PUBLISH_WAIT_S", "0")
    with reader(out, 60), reader(out, 60):
        assert run("shard", CONFIG, inputs, out).reused


@pytest.mark.fault("F9")
def test_an_input_is_not_replaced_while_a_verb_in_another_process_reads_it(tmp_path: Path) -> None:
    inputs, out = write_inputs(tmp_path / "in", n=600), tmp_path / "shards"
    pictures = inputs["images"]
    stages.record_of(pictures).mkdir()
    (stages.record_of(pictures) / ".lease").touch()  # as after the run that made them
    versions = {name: stages.data_version(path) for name, path in inputs.items()}
    words = [sys.executable, "-m", "vlm_core", "shard", "--out", str(out), "--json"]
    verb = subprocess.Popen([*words, *[f"--in={k}={v}" for k, v in inputs.items()]], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert verb.stderr is not None
    verb.stderr.readline()  # the first line of progress: it reads
    other = tmp_path / "in" / "images.tmp-1"
    other.mkdir()
    (other / "nothing").write_text("of use")
    stages.publish(other, pictures)
    assert (stages.record_of(out) / "result.json").exists(), "the new folder took its place before the reader had ended"
    said = json.loads(verb.communicate(timeout=60)[0])
    assert verb.returncode == 0
    assert said["provenance"]["inputs"] == versions
    assert [path.name for path in pictures.iterdir()] == ["nothing"]


def test_two_that_read_each_others_folders_are_refused_and_not_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PUBLISH_WAIT_S", "0.5")
    code = "import sys; from pathlib import Path; from vlm_core import stage; from vlm_core.reading import reading\n"
    code += "mine, its = Path(sys.argv[1]), Path(sys.argv[2])\n"
    code += "with reading([its], stage.record_of(mine)):\n print('reads', flush=True); sys.stdin.readline()\n"
    code += " tmp = mine.with_name(mine.name + '.tmp-1'); tmp.mkdir()\n stage.publish(tmp, mine)\n"
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        with stages.lease(stages.record_of(folder)):
            pass
    both = [
        subprocess.Popen([sys.executable, "-c", code, *map(str, pair)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for pair in ((a, b), (b, a))
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
    began = time.monotonic()
    said = [process.communicate("go\n", timeout=30)[1] for process in both]
    assert time.monotonic() - began < 10
    assert sum("OutputBusy" in text for text in said) in {1, 2}  # whoever gives up first lets the other one through


def test_a_reader_without_the_right_to_write_still_keeps_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PUBLISH_WAIT_S", "0")
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        out, tmp = Path(root) / "out", Path(root) / "out.tmp-1"
        for folder in (out, tmp):
            folder.mkdir()
        with stages.lease(stages.record_of(out)):
            pass
        with reader(out, 60, "as nobody"), pytest.raises(OutputBusy):
            stages.publish(tmp, out)
        stages.publish(tmp, out)


def test_folders_that_no_run_made_and_the_own_output_need_no_lock(made: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    inputs, out = made
    with reading([*inputs.values(), out, tmp_path / "absent", Path("/")], stages.record_of(out)):
        tmp = tmp_path / "shards.tmp-1"
        tmp.mkdir()
        stages.publish(tmp, out)
    assert not list(inputs["pairs"].parent.glob("*.run"))
