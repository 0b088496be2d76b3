"""The data ledger: DVC records the bytes of a stage that somebody else produced, a commit on its own ref records dvc.lock.

DVC is asked to commit, never to run anything; git is used through its plumbing, so the index, the branch and the work tree of
the person who works here stay as they are.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vlm_core.errors import BadManifest, LaunchError, MissingInput
from vlm_core.stage import data_version
from vlm_core.switches import switch_off

REF = "refs/heads/vlm-snapshots"  # a branch: `dvc gc --all-commits` keeps what branches and tags name, and nothing else
FILES = ("dvc.yaml", "dvc.lock", "params.yaml")
WHO = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "vlm ledger"), ("EMAIL", "ledger@localhost"))}


class Entry(NamedTuple):
    """What the ledger says about one snapshot."""

    version: str
    commit: str
    recorded: bool  # False: it was there already
    said: str


def record_snapshot(stage: str, folder: str, root: Path, expected: str) -> Entry:
    """Record the outputs of a DVC stage under their hash.

    Raises BadManifest when the folder no longer holds the bytes that the asset reported, MissingInput without a DVC project.
    """
    version = data_version(root / folder)
    if expected and version != expected:
        raise BadManifest(f"Found {folder} with the hash {version}, expected {expected} as its asset reported; somebody changed it, materialise it again.")
    if os.environ.get("DVC_STAGE"):
        return Entry(version, "", False, "left to the 'dvc repro' that started this run")
    if not (root / ".dvc").is_dir():
        raise MissingInput(f"Found no folder .dvc in {root}, expected a DVC project; run 'dvc init' there (with --no-scm outside git).")
    recorded = lock_version(root, stage, folder) != version
    if recorded:
        _dvc_commit(stage, root)
    found = lock_version(root, stage, folder)
    if found != version:
        raise BadManifest(f"Found {found or 'nothing'} for {folder} in dvc.lock, expected {version}; look at 'dvc status {stage}'.")
    commit = _commit(root, f"snapshot {version}")
    return Entry(
        version, commit, recorded, f"{'recorded' if recorded else 'known already'} in dvc.lock, {f'{REF} at {commit[:10]}' if commit else 'no git here'}"
    )


def lock_version(root: Path, stage: str, folder: str) -> str:
    """The hash that dvc.lock holds for an output; '' when it holds none."""
    lock = root / "dvc.lock"
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}
    return next((str(out["md5"]) for out in stages.get(stage, {}).get("outs", []) if out["path"] == folder), "")


def changes(catalog: Path, before: str, now: str) -> list[dict[str, Any]]:
    """What differs between two snapshots of the catalog, by reason; nothing when one is unknown."""
    if not before or before == now:
        return []
    from vlm_core.data.lineage.catalog import ask, open_catalog
    from vlm_core.data.lineage.diff import diff

    con = open_catalog(catalog)
    known = {row["snapshot_md5"] for row in ask(con, "SELECT DISTINCT snapshot_md5 FROM snapshots")}
    return diff(con, before, now)["changes"] if {before, now} <= known else []


def revoked(home: Path, version: str) -> list[dict[str, Any]]:
    """The takedowns that mark a snapshot, for the page of its asset."""
    from vlm_core.data.lineage.revoked import find

    return [{**row, "at": str(row["at"])} for row in find(home, version)]


def _dvc_commit(stage: str, root: Path, tries: int = 4) -> None:
    switch_off()
    for attempt in range(tries):
        done = subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q", stage], check=False, cwd=root, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "lock" not in done.stderr and "busy" not in done.stderr:
            break
        time.sleep(2 * 2**attempt)  # another DVC command owns the project for a moment
    raise LaunchError(
        f"Found that 'dvc commit {stage}' failed ({done.stderr.strip()[-400:]}), expected it to record the outputs; repair that and materialise again."
    )


def _commit(root: Path, message: str) -> str:
    """A commit of the ledger files on its own ref; the present one when nothing changed; '' outside git."""
    if _git(root, "rev-parse", "--git-dir", check=False) is None:
        return ""
    blobs = [(name, _git(root, "hash-object", "-w", name)) for name in FILES if (root / name).exists()]
    tree = _git(root, "mktree", stdin="".join(f"100644 blob {blob}\t{name}\n" for name, blob in sorted(blobs)))
    parent = _git(root, "rev-parse", "--verify", "-q", REF, check=False)
    if parent and _git(root, "rev-parse", f"{parent}^{{tree}}") == tree:
        return parent
    commit = _git(root, "commit-tree", str(tree), *(["-p", parent] if parent else []), "-m", message)
    _git(root, "update-ref", REF, str(commit), parent or "0" * 40)
    return str(commit)


def _git(root: Path, *words: str, stdin: str | None = None, check: bool = True) -> str | None:
    done = subprocess.run(["git", *words], check=False, cwd=root, input=stdin, capture_output=True, text=True, env={**os.environ, **WHO})
    if done.returncode == 0:
        return done.stdout.strip()
    if check:
        raise LaunchError(f"Found that 'git {words[0]}' failed ({done.stderr.strip()[-300:]}), expected it to record the ledger; repair the repository.")
    return None
