"""Chance that is a function of a seed and a name: equal on every machine, in every order, in any number of processes."""

import hashlib


def uniform(seed: int | str, name: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big") / 2**48
