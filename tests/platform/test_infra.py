"""The server's image and compose file, read as text: what a container engine would stumble over. And the script that makes the project folder, run."""

import configparser
import fnmatch
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.platform.conftest import ROOT

DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("vlm-platform")}


def owned() -> set[str]:
    """The folders that the image makes, with their parents, and gives to its user."""
    commands = [shlex.split(part) for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line.startswith("RUN ") for part in line[4:].split("&&")]
    made = {word for command in commands if command[:2] == ["mkdir", "-p"] for word in command[2:]} | {"/app"}
    given = [word for command in commands if command[:3] == ["chown", "-R", "vlm:vlm"] for word in command[3:]]
    return {path for folder in made for path in (folder, *map(str, Path(folder).parents)) if any(Path(path).is_relative_to(top) for top in given)}


def test_every_mounted_folder_exists_in_the_image_and_belongs_to_its_user() -> None:
    for name, service in OURS.items():
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            folder = str(Path(target).parent) if source.startswith(".") else target  # a file is mounted into a folder that must be there
            assert folder in owned(), f"{name} mounts {target}"
    last = DOCKERFILE.index("USER vlm")
    assert last > DOCKERFILE.rindex("chown"), "who changes owners must be root"


def test_what_must_outlive_a_container_lies_on_a_volume() -> None:
    on = {volume.split(":")[1] for volume in OURS["code"]["volumes"] if not volume.startswith(".")}
    environment = dict(re.findall(r"(\w+)=(\S+)", DOCKERFILE[DOCKERFILE.index("ENV ") :].splitlines()[0]))
    environment |= OURS["code"]["environment"]
    assert environment["VLM_ROOT"] in on  # params.yaml, data, .dvc/cache, dvc.lock, .git
    for name in ("VLM_HOME", "DAGSTER_HOME"):
        assert any(Path(environment[name]).is_relative_to(volume) for volume in on), name
    settings = configparser.ConfigParser()
    ini = Path(OURS["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"]).relative_to("/app")
    settings.read(ROOT / ini)
    database = Path(settings["mlflow"]["database_uri"].removeprefix("sqlite:///"))
    assert any(database.is_relative_to(volume) for volume in on)
    assert str(database.parent) in owned()
    assert {
        name for service in COMPOSE["services"].values() for volume in service.get("volumes", []) if not (name := volume.split(":")[0]).startswith(".")
    } == set(COMPOSE["volumes"])


def test_mlflows_login_finds_every_setting_in_our_file() -> None:
    (mlflow,) = importlib.util.find_spec("mlflow").submodule_search_locations  # type: ignore[union-attr, misc]
    theirs, ours = configparser.ConfigParser(), configparser.ConfigParser()
    theirs.read(Path(mlflow) / "server/auth/basic_auth.ini")
    ours.read(ROOT / "infra/mlflow/basic_auth.ini")
    assert theirs["mlflow"].get("database_uri")
    assert set(theirs["mlflow"]) - set(ours["mlflow"]) <= {"admin_password"}


def test_every_extra_that_the_services_need_is_asked_for_under_the_constraints() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [line for line in re.split(r"&&|\n", DOCKERFILE.replace("\\\n", " ")) if "pip install" in line]
    assert all(any(word in line for word in ("-c constraints.txt", "--require-hashes", "infra/dvc.txt")) for line in installs), installs
    asked = " ".join(package for extra in re.findall(r"-e '\.\[([\w,]+)\]'", DOCKERFILE) for name in extra.split(",") for package in extras[name])
    assert "basic-auth" in OURS["mlflow"]["command"]
    assert "mlflow[auth]" in asked
    assert "s3://" in OURS["mlflow"]["command"]
    assert "boto3" in asked
    apart = [line for line in (ROOT / "infra/dvc.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in apart)
    here = re.search(r"^dvc==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert here is not None
    assert here[0] in apart, "both environments write one cache"
    assert any(line.startswith("dvc-s3==") for line in apart)
    pinned = (ROOT / "constraints.txt").read_text().lower()
    for package in ("mlflow", "flask-wtf", "boto3"):
        assert re.search(rf"^{package}==", pinned, re.MULTILINE), package


def test_every_image_is_pinned_and_every_service_waits_for_what_it_needs() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in [*bases, *(service["image"] for service in COMPOSE["services"].values())]:
        tag = image.rpartition(":")[2]
        assert tag != image, image
        assert tag != "latest", image
        assert re.search(r"\d", tag), image
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    assert {"project", "postgres"} <= set(COMPOSE["services"]["code"]["depends_on"])


def test_nothing_large_or_private_is_copied_into_the_image() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for path in (".venv", "data", ".platform", ".dvc/cache", ".dvc/tmp"):
        assert any(fnmatch.fnmatch(path, pattern) for pattern in ignored), path
    for path in ("vlm_core", "assets", "pipelines", "infra", "params.yaml", "dvc.yaml", "models.txt", ".dvc/config", "README.md"):
        assert not any(fnmatch.fnmatch(path, pattern) for pattern in ignored), path


def test_nothing_is_published_beyond_loopback_and_no_secret_has_a_default() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not re.findall(r"\$\{(\w+)(?!\w|:\?)", (ROOT / "infra" / "compose.yaml").read_text())


@pytest.mark.timeout(120)
def test_the_project_folder_is_made_once_and_what_people_changed_in_it_stays(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "VLM_ROOT": str(tmp_path), "PATH": f"{bin_folder}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    for _ in range(2):
        subprocess.run([ROOT / "infra" / "project.sh"], env=environment, cwd="/", check=True, capture_output=True)
        (tmp_path / "params.yaml").write_text("changed: true\n")
    assert (tmp_path / "params.yaml").read_text() == "changed: true\n"
    assert (tmp_path / ".dvc" / "config").read_text() == (ROOT / ".dvc" / "config").read_text()
    assert (tmp_path / "vlm_core" / "run.py").exists()
    listed = subprocess.run([bin_folder / "dvc", "stage", "list", "--name-only"], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert {"crawl", "shard"} <= set(listed.stdout.split())
    assert (
        subprocess.run(
            ["git", "-c", "safe.directory=*", "status", "--porcelain", "data", "vlm_core"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout
        == ""
    )
