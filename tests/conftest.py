"""Fixtures that several test folders share, and the line of figures under a run."""

import os
from collections.abc import Iterator

import pytest

from vlm_core.switches import switch_off

switch_off()  # before anything imports torch

from tests.figures import losses, pytest_collection_modifyitems, pytest_configure, pytest_terminal_summary, tally  # noqa: E402
from tests.network import block  # noqa: E402
from tests.small_set import small_set  # noqa: E402

block()  # nothing here needs another machine

__all__ = ["losses", "pytest_collection_modifyitems", "pytest_configure", "pytest_terminal_summary", "small_set", "tally"]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """MLflow writes the address that a test gave it into the environment, where the processes of later tests would find a server that is gone."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before
