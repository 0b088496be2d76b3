"""Fixtures that several test folders share."""

from tests.small_set import small_set

__all__ = ["small_set"]
