"""Every stored array of an official implementation against our function of the same name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.check import Check, failure, run_entry
from tests.golden.tables import files, table

HERE = Path(__file__).parent
FILES = files(HERE)
SEVERAL_PROCESSES = ("distributed_losses",)


def _case(family: str, path: Path) -> Any:
    return pytest.param(family, path, id=f"{family}/{path.stem}", marks=[pytest.mark.flow] if path.stem in SEVERAL_PROCESSES else [])


@pytest.mark.parametrize(("family", "path"), [_case(*file) for file in FILES])
def test_our_numbers_equal_the_official_ones(family: str, path: Path) -> None:
    entry = table(family).get(path.stem)
    assert entry is not None, f"no entry for {path.stem} in tests/golden/table_{family}.py"
    _, wrong = run_entry(entry, path)
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("family", sorted({family for family, _ in FILES}))
def test_every_entry_of_a_table_has_its_file(family: str) -> None:
    assert set(table(family)) <= {path.stem for name, path in FILES if name == family}


def test_a_wrong_value_a_wrong_shape_and_a_missing_nan_are_failures() -> None:
    assert failure(Check("x", np.array([1.0, 2.0]), np.array([1.0, 2.0009]))) is None
    assert "worst 2.0 for 2.1 at (1,)" in str(failure(Check("x", np.array([1.0, 2.0]), np.array([1.0, 2.1])))).replace("np.float64(2.0)", "2.0").replace(
        "np.float64(2.1)", "2.1"
    )
    assert "shape" in str(failure(Check("x", np.zeros((2, 1)), np.zeros(2))))
    assert failure(Check("x", np.array([0.0]), np.array([np.nan]))) is not None
    assert failure(Check("x", np.array([np.nan]), np.array([np.nan]))) is None
    assert "1 of 3 differ" in str(failure(Check("x", np.array([1, 2, 3]), np.array([1, 2, 4]))))


def test_the_runner_reports_one_line_per_file_and_fails_on_a_file_without_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation").mkdir()
    shutil.copy(HERE / "evaluation" / "calibration.npz", tmp_path / "evaluation")
    assert main(["--dir", str(tmp_path)]) == 0
    assert main(["--dir", str(tmp_path / "evaluation")]) == 0
    np.savez(tmp_path / "evaluation" / "unheard_of.npz", x=np.zeros(1))
    assert main(["--dir", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0].startswith("ok     evaluation/calibration: ")
    assert last[1] == "FAILED evaluation/unheard_of: no entry in tests/golden/table_evaluation.py"
    assert last[2].startswith("1 of 2 files passed")


def test_changed_official_numbers_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(HERE / "evaluation" / "calibration.npz") as file:
        arrays = dict(file)
    (tmp_path / "evaluation").mkdir()
    np.savez(tmp_path / "evaluation" / "calibration.npz", **{**arrays, "nll": arrays["nll"] * 1.01})
    assert main(["--dir", str(tmp_path)]) == 1
    assert "FAILED evaluation/calibration: nll" in capsys.readouterr().out
