"""Who may import whom, and what stays light."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_hold() -> None:
    done = subprocess.run([str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def test_settings_recipes_and_the_command_line_load_without_torch() -> None:
    code = """
import sys
from vlm_core import cli, run
for verb in run.VERBS:
    run.recipes(verb)
print(sorted({"torch", "lightning", "mlflow", "transformers", "pandas", "duckdb", "dagster", "dvc"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BREAKS = {
    "one way": ("pipelines/resources.py", "import assets.shards"),
    "vlm_core is pure": ("vlm_core/data/sample.py", "import dagster"),
    "MLflow only in track": ("vlm_core/models/vit.py", "import mlflow"),
    "methods do not know each other": ("vlm_core/transfer/coop.py", "import vlm_core.transfer.tip_adapter"),
    "flow order inside vlm_core": ("vlm_core/data/shards/tar.py", "import vlm_core.models.vit"),
}


def test_each_contract_notices_when_it_is_broken(tmp_path: Path) -> None:
    for name in ("vlm_core", "assets", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in BREAKS.values():
        with (tmp_path / file).open("a") as stream:
            stream.write(f"\n{line}\n")
    lint = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode != 0
    for contract in BREAKS:
        assert f"{contract} BROKEN" in done.stdout, contract
