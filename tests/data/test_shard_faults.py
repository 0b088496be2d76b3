"""What goes wrong while shards are written: the process dies at any system call, the disk fills up, clocks jump, two start at once (F2, F6, F9, F15)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.data.small_world import write_inputs
from vlm_core.data.config import Shard
from vlm_core.data.shards.verify import verify
from vlm_core.run import run

CONFIG = Shard(held_out=0.3, samples_per_shard=12)
NAMES = ("pairs", "images", "filtered", "captions")
SETTINGS = ["--set", "held_out=0.3", "--set", "samples_per_shard=12"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def words(root: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "vlm_core",
        "shard",
        *SETTINGS,
        "--out",
        str(out),
        *(part for name in NAMES for part in ("--in", f"{name}={root / 'in' / name}")),
    ]


# One process per fatal step, forked from one that has imported everything. A step is a call that changes the disk; before the n-th the child kills itself.
KILLER = """
import os, pathlib, shutil, signal, sys
import pyarrow as pa
pa.set_cpu_count(1); pa.set_io_thread_count(1)
from vlm_core import run as seam, stage
from vlm_core.data.shards import growth
from vlm_core.data.shards import shards
from vlm_core.data.shards import files as shard_files
from vlm_core.data.config import Shard
root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])

def child(fatal):
    steps = 0
    def before(function):
        def step(*values, **more):
            nonlocal steps
            steps += 1
            if steps == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*values, **more)
        return step
    for module, names in ((os, ("fsync", "link")), (pathlib.Path, ("rename", "mkdir", "write_text")), (shutil, ("rmtree", "copy2"))):
        for name in names:
            setattr(module, name, before(getattr(module, name)))
    for name in ("_write_tar",):
        setattr(shard_files, name, before(getattr(shard_files, name)))
    shards.pq.write_table = before(shards.pq.write_table)
    inputs = {name: root / "in" / name for name in ("pairs", "images", "filtered", "captions")}
    seam.run("shard", Shard(held_out=0.3, samples_per_shard=12), inputs, out)

for fatal in range(1, 400):
    if (pid := os.fork()) == 0:
        sys.stderr = open(os.devnull, "w")
        try:
            child(fatal)
        except BaseException as error:
            os.write(1, repr(error).encode())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    ended = os.waitstatus_to_exitcode(status)
    version = stage.dir_hash({p.name: stage.file_md5(p) for p in out.iterdir()}) if out.exists() else ""
    print(fatal, ended, version, flush=True)
    if ended == 0:
        break
"""


@pytest.mark.fault("F2")
@pytest.mark.slow
def test_kill_9_before_every_step_of_a_growing_snapshot_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 60)
    out = tmp_path / "shards"
    old = run("shard", CONFIG, {name: tmp_path / "in" / name for name in NAMES}, out).data_version
    write_inputs(tmp_path / "in", 66)
    lines = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path), str(out)], check=True, capture_output=True, text=True).stdout.splitlines()
    seen = [(int(ended), version) for _, ended, version in (line.split(" ") for line in lines)]
    assert [ended for ended, _ in seen] == [-signal.SIGKILL] * (len(seen) - 1) + [0]
    new = seen[-1][1]
    assert {version for _, version in seen} <= {old, new, ""}
    assert sum(version == old for _, version in seen) > 10, "the fatal steps come before, in"
    assert sum(version == new for _, version in seen) > 3, "and after the publication"
    assert sum(version == "" for _, version in seen) <= 2, "between the two renames only, until the next run has brought the old one back"
    assert sorted(path.name for path in tmp_path.glob("shards*")) == ["shards", "shards.run"]
    assert verify(out) == new
    print(f"faults survived {len(seen) - 1}/{len(seen) - 1}, snapshots lost 0, mixed 0")


FULL = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
head -c {ballast} /dev/zero > {disk}/ballast
set +e; {command} 2> {log}; echo "$?"; set -e
ls {disk}
rm {disk}/ballast
{command} > /dev/null 2>&1
{python} -m vlm_core verify {out}
"""


@pytest.mark.fault("F6")
@pytest.mark.slow  # mounts a disk of its own, which not every machine that runs the tests allows
@pytest.mark.parametrize("what", ["output", "catalog"])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on_once_there_is_room(tmp_path: Path, what: str) -> None:
    write_inputs(tmp_path / "in", 60)
    wanted = run("shard", CONFIG, {name: tmp_path / "in" / name for name in NAMES}, tmp_path / "undisturbed").data_version
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "shards" if what == "output" else tmp_path / "shards"
    size, ballast = (1_048_576, 983_040) if what == "output" else (131_072, 118_784)
    script = FULL.format(disk=disk, size=size, ballast=ballast, out=out, log=tmp_path / "log", command=" ".join(words(tmp_path, out)), python=sys.executable)
    env = {**os.environ, "VLM_HOME": str(disk / "home" if what == "catalog" else tmp_path / "home2")}
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "log").read_text().splitlines()[-1]
    assert said.startswith("DiskFull: Found no room for what 'vlm shard' writes")
    assert str(disk) in said
    code, *left = done.stdout.splitlines()
    assert code == "10"
    assert not [name for name in left if ".tmp" in name]
    assert "whole; 60 samples in 6 shards" in done.stdout
    assert f"version {wanted}" in done.stdout


@pytest.mark.fault("F9")
def test_clocks_that_jump_change_nothing_that_is_reused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 60)
    first = run("shard", CONFIG, inputs, tmp_path / "shards")
    for when in (978_307_200, 4_102_444_800):  # 2001 and 2100
        for path in (tmp_path / "shards").iterdir():
            os.utime(path, (when, when))
        for folder in inputs.values():
            for path in folder.iterdir():
                os.utime(path, (when, when))
        again = run("shard", CONFIG, inputs, tmp_path / "shards")
        assert (again.reused, again.data_version, again.run_id) == (True, first.data_version, first.run_id)


@pytest.mark.fault("F9")
def test_two_clicks_at_once_make_one_snapshot(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 300)
    out = tmp_path / "shards"
    both = [subprocess.Popen([*words(tmp_path, out), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 10])
    reports = [json.loads(stdout) for stdout, _ in said if stdout]
    assert len({report["run_id"] for report in reports}) == 1, "the second one reused, or was refused"
    assert all("in use by process" in stderr for (stdout, stderr), process in zip(said, both, strict=True) if process.returncode == 10)
    assert verify(out) == reports[0]["data_version"]


@pytest.mark.fault("F15")
@pytest.mark.slow
def test_dvc_repro_and_a_run_at_the_same_time_end_with_the_same_hash(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 300)
    wanted = run("shard", CONFIG, {name: tmp_path / "in" / name for name in NAMES}, tmp_path / "undisturbed").data_version
    dvc = [str(Path(sys.executable).parent / "dvc")]
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", "VLM_HOME": str(tmp_path / "home")}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, env=env, check=True, capture_output=True)
    stage = {"cmd": " ".join(words(Path(), Path("shards"))), "deps": ["in"], "outs": [{"shards": {"persist": True}}]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"shard": stage}}))
    repro = subprocess.Popen([*dvc, "repro", "shard"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    mine = 0
    while repro.poll() is None and mine == 0:
        mine = subprocess.run([*words(tmp_path, tmp_path / "shards"), "--force"], env=env, capture_output=True, check=False).returncode
        time.sleep(0.2)
    said = repro.communicate(timeout=120)[0]
    assert mine in (0, 10)
    assert repro.returncode == 0 or "in use by process" in said
    subprocess.run([*dvc, "repro", "shard"], cwd=tmp_path, env=env, check=True, capture_output=True)
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    assert lock["stages"]["shard"]["outs"][0]["md5"] == verify(tmp_path / "shards") == wanted
