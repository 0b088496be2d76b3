"""Fixtures that several test folders share."""

from vlm_core.switches import switch_off

switch_off()  # before anything imports torch

from tests.small_set import small_set  # noqa: E402

__all__ = ["small_set"]
