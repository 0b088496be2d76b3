"""The ledger: DVC and git, really, in a folder of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.ledger import REF, lock_version, record_snapshot
from vlm_core.errors import BadManifest, MissingInput
from vlm_core.stage import data_version
from vlm_core.switches import switch_off

STAGES = {"stages": {"shard": {"cmd": f"{sys.executable} make.py", "deps": ["make.py"], "outs": [{"data/shards": {"persist": True}}]}}}
MAKE = "import pathlib, sys; p = pathlib.Path('data/shards'); p.mkdir(parents=True, exist_ok=True); (p / 'train-00000.tar').write_bytes(b'one'); (p / 'é.json').write_text('{}')"


def sh(root: Path, *words: str) -> str:
    return subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *words: str) -> str:
    return sh(root, sys.executable, "-m", "dvc", *words)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC project whose shards somebody made without DVC."""
    switch_off()
    root = tmp_path_factory.mktemp("ledger")
    sh(root, "git", "init", "-q", "-b", "main", ".")
    sh(root, "git", "config", "user.name", "a person")
    sh(root, "git", "config", "user.email", "person@localhost")
    dvc(root, "init", "-q")
    shutil.copy(Path(__file__).parent.parent.parent / ".dvc" / "config", root / ".dvc" / "config")
    (root / "dvc.yaml").write_text(yaml.safe_dump(STAGES))
    (root / "make.py").write_text(MAKE)
    (root / ".gitignore").write_text("/data/\n")
    sh(root, "git", "add", "-A")
    sh(root, "git", "commit", "-qm", "start")
    sh(root, sys.executable, "make.py")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


def test_a_snapshot_is_recorded_without_running_its_stage_and_repro_agrees(root: Path) -> None:
    version = data_version(root / "data/shards")
    entry = record_snapshot("shard", "data/shards", root, version)
    assert (entry.version, entry.recorded) == (version, True)
    assert lock_version(root, "shard", "data/shards") == version
    assert "didn't change, skipping" in dvc(root, "repro", "shard")
    listing = json.loads((root / ".dvc/cache/files/md5" / version[:2] / version[2:]).read_text())
    assert [row["relpath"] for row in listing] == ["train-00000.tar", "é.json"]


def test_the_persons_branch_index_and_files_stay_as_they_are(root: Path) -> None:
    (root / "note.txt").write_text("half done")
    sh(root, "git", "add", "note.txt")
    before = sh(root, "git", "status", "--porcelain"), sh(root, "git", "rev-parse", "HEAD")
    entry = record_snapshot("shard", "data/shards", root, "")
    after = sh(root, "git", "status", "--porcelain"), sh(root, "git", "rev-parse", "HEAD")
    assert after[1] == before[1]
    assert set(after[0].splitlines()) - set(before[0].splitlines()) == {"?? dvc.lock"}
    assert sh(root, "git", "rev-parse", REF) == entry.commit
    kept = yaml.safe_load(sh(root, "git", "show", f"{REF}:dvc.lock"))
    assert kept["stages"]["shard"]["outs"][0]["md5"] == entry.version
    assert sh(root, "git", "log", "-1", "--format=%an %s", REF) == f"vlm ledger snapshot {entry.version}"


def test_recording_the_same_bytes_again_adds_nothing_and_new_bytes_add_a_commit(root: Path) -> None:
    first = record_snapshot("shard", "data/shards", root, "")
    again = record_snapshot("shard", "data/shards", root, "")
    assert (again.recorded, again.commit) == (False, first.commit)
    shutil.rmtree(root / "data/shards")
    (root / "data/shards").mkdir()
    (root / "data/shards/train-00000.tar").write_bytes(b"two")
    second = record_snapshot("shard", "data/shards", root, "")
    assert second.recorded
    assert sh(root, "git", "rev-parse", f"{REF}^") == first.commit


def test_no_recorded_snapshot_is_lost_to_garbage_collection(root: Path) -> None:
    first = record_snapshot("shard", "data/shards", root, "")
    shutil.rmtree(root / "data/shards")
    (root / "data/shards").mkdir()
    (root / "data/shards/train-00000.tar").write_bytes(b"two")
    record_snapshot("shard", "data/shards", root, "")
    dvc(root, "gc", "--all-commits", "-f", "-q")
    cache = root / ".dvc/cache/files/md5"
    listing = json.loads((cache / first.version[:2] / first.version[2:]).read_text())
    assert (cache / listing[0]["md5"][:2] / listing[0]["md5"][2:]).read_bytes() == b"one"


def test_bytes_that_differ_from_what_the_asset_reported_are_refused(root: Path) -> None:
    with pytest.raises(BadManifest, match=r"expected 0{32}\.dir as its asset reported"):
        record_snapshot("shard", "data/shards", root, "0" * 32 + ".dir")
    assert not (root / "dvc.lock").exists()


def test_under_dvc_repro_the_recording_is_left_to_dvc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "shard")
    assert not record_snapshot("shard", "data/shards", root, "").recorded
    assert not (root / "dvc.lock").exists()


def test_a_folder_without_dvc_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data/shards").mkdir(parents=True)
    with pytest.raises(MissingInput, match="run 'dvc init' there"):
        record_snapshot("shard", "data/shards", tmp_path, "")
