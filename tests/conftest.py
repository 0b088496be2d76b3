"""Fixtures that several test folders share, and the line of figures under a run."""

from vlm_core.switches import switch_off

switch_off()  # before anything imports torch

from tests.figures import losses, pytest_collection_modifyitems, pytest_configure, pytest_terminal_summary, tally  # noqa: E402
from tests.network import block  # noqa: E402
from tests.small_set import small_set  # noqa: E402

block()  # nothing here needs another machine

__all__ = ["losses", "pytest_collection_modifyitems", "pytest_configure", "pytest_terminal_summary", "small_set", "tally"]
