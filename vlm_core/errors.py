"""The exceptions of the platform, and the exit codes that a shell, Dagster or DVC sees.

    VlmError                    exit 20 unless said otherwise
      ConfigError               cannot run as asked            -> fix the config
        UnknownKind             no method of that name         -> did you mean ...
        Incompatible            parts that do not fit          -> which two, and what would fit
      DataError                 inputs not as promised
        MissingInput            a file or folder is not there
        BadManifest             bytes differ from their checksum, or a shard cannot be read
        SchemaMismatch          a table lacks a column
        NothingLeft             a stage kept no sample at all
        TakenDown               it holds what was taken down   -> make it again, or the named waiver
      CheckpointError           wrong digest, activation or shape
      ServiceError              a server did not answer        exit 10: the same command may succeed later
      BudgetSpent               a limit that the user set      exit 30
      LaunchError               the process or cluster failed  -> where its log is
        OutputBusy              another run owns the folder    exit 10
        DiskFull                no room for what is written    exit 10
      NumericsError             NaN or divergence              -> step, term, last good checkpoint

Every message is one sentence: what was found (with the value), what was expected, what to do.
"""

import difflib
from collections.abc import Iterable


class VlmError(Exception):
    exit_code = 20


class ConfigError(VlmError):
    pass


class UnknownKind(ConfigError):
    pass


class Incompatible(ConfigError):
    pass


class DataError(VlmError):
    pass


class MissingInput(DataError):
    pass


class BadManifest(DataError):
    pass


class SchemaMismatch(DataError):
    pass


class NothingLeft(DataError):
    pass


class TakenDown(DataError):
    pass


class CheckpointError(VlmError):
    pass


class ServiceError(VlmError):
    exit_code = 10


class BudgetSpent(VlmError):
    exit_code = 30


class LaunchError(VlmError):
    pass


class OutputBusy(LaunchError):
    exit_code = 10


class DiskFull(LaunchError):
    exit_code = 10


class NumericsError(VlmError):
    pass


def did_you_mean(word: str, menu: Iterable[str]) -> str:
    """The tail of an error message: the nearest names first, then the whole menu."""
    names = sorted(menu)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + "Choose one of: " + ", ".join(names) + "."
