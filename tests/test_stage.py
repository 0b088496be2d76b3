"""The promises of vlm_core.stage, against the real DVC, real processes and real SIGKILL."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from vlm_core import stage as stages
from vlm_core.errors import MissingInput, OutputBusy
from vlm_core.track import NullTracker

DVC = Path(sys.executable).parent / "dvc"
ENV = {**os.environ, "DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1"}


def python(code: str, *words: str, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload]


def test_the_data_version_of_a_nested_folder_with_names_in_many_scripts_is_what_dvc_add_writes(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    for name, data in {
        "manifest.json": b'{"a": 1}\n', "train-00000.tar": bytes(range(256)) * 9, "b/c/deep.txt": b"line\r\nline\r\n", "empty.bin": b"",
        "그림/고양이.jpg": b"\xff\xd8", "é/ü ö.txt": "ß".encode(), "Z.txt": b"upper sorts before lower", "a.txt": b"a", "b-c.txt": b"before b/",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for words in (["init", "--no-scm", "-q"], ["add", "-q", "snapshot"]):
        subprocess.run([DVC, *words], cwd=tmp_path, env=ENV, check=True, capture_output=True)
    [written] = yaml.safe_load((tmp_path / "snapshot.dvc").read_text())["outs"]
    assert stages.data_version(folder) == written["md5"]
    assert len(written["md5"]) == 36


def test_the_data_version_of_a_file_is_its_md5_and_of_a_changed_folder_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    stages.record_of(folder).mkdir()
    (folder / "a").write_bytes(b"abc")
    assert stages.data_version(folder / "a") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, A.5
    before = stages.data_version(folder)
    assert json.loads((stages.record_of(folder) / "files.json").read_text())["a"][2] == "900150983cd24fb0d6963f7d28e17f72"
    (folder / "a").write_bytes(b"abd")
    os.utime(folder / "a", ns=(1, 1))
    changed = stages.data_version(folder)
    (folder / "a").rename(folder / "b")
    assert len({before, changed, stages.data_version(folder)}) == 3


HOLD = "import sys, time; from pathlib import Path; from vlm_core.stage import lease\nwith lease(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.mark.fault("F4")
def test_a_lease_refuses_a_second_owner_by_name_and_is_free_after_kill_9(tmp_path: Path) -> None:
    record = tmp_path / "out.run"
    owner = python(HOLD, str(record))
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(OutputBusy, match=f"in use by process {owner.pid}") as refused, stages.lease(record):
            pass
        assert refused.value.exit_code == 10
    finally:
        owner.kill()
        owner.communicate()
    with stages.lease(record):
        pass


def test_a_second_owner_waits_for_the_name_that_the_first_is_about_to_write(tmp_path: Path) -> None:
    record = tmp_path / "out.run"
    record.mkdir()
    with (record / ".lease").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # taken, and not signed yet
        sign = threading.Timer(0.3, lambda: (stream.write("process 12345"), stream.flush()))
        sign.start()
        with pytest.raises(OutputBusy, match="in use by process 12345"), stages.lease(record):
            pass
        sign.join()


# Publishes a folder whose every file says its round, and kills itself with SIGKILL just before the n-th step (rename or removal) that is asked for.
PUBLISH = """
import os, pathlib, shutil, signal, sys
from vlm_core import stage
out, number, fatal = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tmp = out.with_name(f"{out.name}.tmp-{os.getpid()}")
for name in ("a", "b/c", "b/d"):
    (tmp / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp / name).write_text(number)
steps = 0
def fatal_at(function):
    def step(*values, **more):
        global steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*values, **more)
    return step
pathlib.Path.rename, shutil.rmtree = fatal_at(pathlib.Path.rename), fatal_at(shutil.rmtree)
stage.publish(tmp, out)
"""


@pytest.mark.fault("F2")
@pytest.mark.parametrize(("fatal", "found"), [(1, "old"), (2, "old"), (3, "old"), (4, "new")])
def test_kill_9_inside_publish_leaves_the_old_folder_or_the_new_one_and_no_rubbish(tmp_path: Path, fatal: int, found: str) -> None:
    out = tmp_path / "out"
    assert python(PUBLISH, str(out), "old", "0").wait(60) == 0
    assert python(PUBLISH, str(out), "new", str(fatal)).wait(60) == -signal.SIGKILL
    stages.recover(out)
    assert {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()} == dict.fromkeys(("a", "b/c", "b/d"), found)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.fault("F2")
def test_kill_9_before_the_first_publication_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert python(PUBLISH, str(out), "new", "1").wait(60) == -signal.SIGKILL
    assert not out.exists()
    stages.recover(out)
    assert list(tmp_path.iterdir()) == []


def test_a_process_dies_with_the_one_that_launched_it(tmp_path: Path) -> None:
    child = "import time; from vlm_core.stage import die_with_parent; die_with_parent(); print('up', flush=True); time.sleep(60)"
    parent = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True, env={{**os.environ, "VLM_PARENT_PID": str(os.getpid())}})
child.stdout.readline(); print(child.pid, flush=True); child.wait()
"""
    launcher = python(parent)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """A process that runs; a dead one that nobody has buried yet (state Z) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_code_version_changes_with_a_module_that_is_imported_through_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vlm_core"
    package.mkdir()
    (package / "top.py").write_text("from vlm_core.middle import f\n")
    (package / "middle.py").write_text("import vlm_core.bottom\n")
    (package / "bottom.py").write_text("x = 1\n")
    (package / "other.py").write_text("x = 1\n")
    monkeypatch.setattr(stages, "PACKAGE", package)
    versions = []
    for name, text in (("other", "x = 2\n"), ("other", "x = 3\n"), ("bottom", "x = 2\n")):
        (package / f"{name}.py").write_text(text)
        stages.code_version.cache_clear()
        versions.append(stages.code_version("vlm_core.top"))
    stages.code_version.cache_clear()
    assert versions[0] == versions[1] != versions[2]


def test_a_missing_input_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    stage = stages.Stage("shard", {"pairs": tmp_path / "nowhere"}, tmp_path, tmp_path, tmp_path, NullTracker(), "r")
    with pytest.raises(MissingInput, match="Found no input 'images' for 'vlm shard' .given: pairs., expected a path; add --in images=PATH"):
        stage.input("images")
    with pytest.raises(MissingInput, match="run the stage that makes it first"):
        stage.input("pairs")


def test_json_is_whole_or_absent_after_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    stages.write_json(path, {"a": "é"})
    with pytest.raises(TypeError):
        stages.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}


def test_a_small_process_is_small_even_if_a_large_one_started_it() -> None:
    child = "from vlm_core.stage import own_peak_mb; print(own_peak_mb())"
    parent = f"import subprocess, sys; ballast = bytearray(400 << 20); print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stdout)"
    said = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 5 < float(said) < 200
