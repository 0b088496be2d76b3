"""The line of figures under a test run: faults survived, bad inputs refused, what was lost or doubled on the way.

@pytest.mark.fault("F1")     the test breaks something (kill -9, truncated file, full disk); letters and numbers as in docs/faults.md
@pytest.mark.abuse("A4")     the test offers something hostile that must be refused
losses(lost=0, doubled=0)    a fixture: what the test counted before it asserted that both are 0
tally(held, of)              a fixture: how many faults or inputs the test tried, and how many it survived or refused; without it a test counts as one
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

KINDS = ("fault", "abuse")
Losses = Callable[..., None]
Tally = Callable[[int, int], None]


@pytest.fixture
def losses(record_property: Callable[[str, object], None]) -> Losses:
    """Say how many samples a fault cost, and how many came twice; both must be none."""

    def say(*, lost: int, doubled: int = 0) -> None:
        record_property("lost", lost)
        record_property("doubled", doubled)
        assert (lost, doubled) == (0, 0)

    return say


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Say how many of the faults or inputs of a test it survived or refused; it must be all of them."""

    def say(held: int, of: int) -> None:
        record_property("held", held)
        record_property("of", of)
        assert held == of

    return say


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number): breaks something on purpose; docs/faults.md lists the numbers")
    config.addinivalue_line("markers", "abuse(number): offers something hostile; docs/faults.md lists the numbers")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        for kind in KINDS:
            item.user_properties.extend((kind, number) for mark in item.iter_markers(kind) for number in mark.args)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    line = figures([report for name in ("passed", "failed", "error") for report in terminalreporter.stats.get(name, [])])
    if line:
        terminalreporter.write_line(line)


def figures(reports: Sequence[pytest.TestReport]) -> str:
    """One line over the reports of a run, or nothing if none of them is about a fault or an abuse."""
    asked = [
        report for report in reports if any(kind in dict(getattr(report, "user_properties", ())) for kind in KINDS) and (report.when == "call" or report.failed)
    ]
    if not asked:
        return ""
    parts = [f"{word} {_share(asked, kind)}" for kind, word in (("fault", "faults survived"), ("abuse", "bad inputs refused"))]
    counted = {name: sum(int(value) for report in asked for key, value in report.user_properties if key == name) for name in ("lost", "doubled")}
    return f"{', '.join(parts)}, lost {counted['lost']}, duplicated {counted['doubled']}"


def _share(reports: Sequence[pytest.TestReport], kind: str) -> str:
    of = [report for report in reports if kind in dict(report.user_properties)]
    numbers = sorted({number for report in of for number in _numbers(report, kind)}, key=lambda number: (number[0], int(number[1:])))
    tallies = [_tally(report) for report in of]
    return f"{sum(held for held, _ in tallies)}/{sum(tried for _, tried in tallies)}" + (f" ({', '.join(numbers)})" if numbers else "")


def _tally(report: pytest.TestReport) -> tuple[int, int]:
    """(held, tried): what the test said, or itself as one."""
    said = dict(report.user_properties)
    tried = int(str(said.get("of", 1)))
    return int(str(said.get("held", tried if report.passed else 0))), tried


def _numbers(report: pytest.TestReport, kind: str) -> Iterator[str]:
    return (str(value) for name, value in report.user_properties if name == kind)
