"""Who may import whom, and what stays light."""

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
