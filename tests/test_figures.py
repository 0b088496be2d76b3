"""The line of figures counts what happened, failures included."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest
from tests.figures import *

@pytest.mark.fault("F1")
def test_survives(losses):
    losses(lost=0)

@pytest.mark.fault("F2")
def test_loses_some(losses):
    losses(lost=3, doubled=1)

@pytest.mark.abuse("A4")
@pytest.mark.parametrize("n", range(3))
def test_refuses(n):
    assert n < 2

@pytest.mark.abuse("A2")
@pytest.mark.parametrize("held", [31, 30])
def test_refuses_most_of_a_list(tally, held):
    tally(held, 31)

def test_something_else():
    pass
"""


def test_failures_lower_the_share_and_what_was_lost_is_added_up(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.figures import losses, tally, pytest_collection_modifyitems, pytest_configure, pytest_terminal_summary")
    pytester.makepyfile(SUITE)
    said = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:xdist").stdout.str()
    assert "faults survived 1/2 (F1, F2), bad inputs refused 63/65 (A2, A4), lost 3, duplicated 1" in said


def test_a_run_without_faults_says_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.figures import losses, pytest_collection_modifyitems, pytest_configure, pytest_terminal_summary")
    pytester.makepyfile("def test_plain(): pass")
    assert "faults survived" not in pytester.runpytest_inprocess("-p", "no:xdist").stdout.str()


def test_every_number_of_a_fault_or_attack_is_explained_and_every_one_explained_is_tested() -> None:
    root = Path(__file__).parent
    used = {
        number
        for file in root.rglob("test_*.py")
        if file != Path(__file__)
        for marks in re.findall(r"mark\.(?:fault|abuse)\(([^)]*)\)", file.read_text())
        for number in re.findall(r"[FA]\d+", marks)
    }
    explained = set(re.findall(r"^\| ([FA]\d+) \|", (root.parent / "docs" / "faults.md").read_text(), re.M))
    assert used == explained
