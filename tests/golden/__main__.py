"""`python -m tests.golden [--dir DIR]`: every file of DIR/<family>/*.npz through the golden tables, one line each and a total.

Exit code 1 when a file fails or has no entry.
"""

import argparse
import sys
from pathlib import Path

from tests.golden.check import run_entry
from tests.golden.tables import files, table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Compare the platform's functions with arrays of the official implementations.")
    parser.add_argument("--dir", type=Path, default=Path(__file__).parent, help="a folder of <family>/*.npz, or one family's folder")
    folder = parser.parse_args(argv).dir
    found = files(folder)
    passed = values = 0
    for family, path in found:
        line, count = _run(family, path)
        values += count
        passed += line.startswith("ok")
        print(line, flush=True)
    print(f"{passed} of {len(found)} files passed, {values} values compared")
    return 0 if found and passed == len(found) else 1


def _run(family: str, path: Path) -> tuple[str, int]:
    name = f"{family}/{path.stem}"
    entry = table(family).get(path.stem)
    if entry is None:
        return f"FAILED {name}: no entry in tests/golden/table_{family}.py", 0
    try:
        count, wrong = run_entry(entry, path)
    except Exception as error:  # one broken file must not hide the others
        return f"FAILED {name}: {type(error).__name__}: {error}", 0
    return (f"FAILED {name}: {'; '.join(wrong)}" if wrong else f"ok     {name}: {count} values"), count


if __name__ == "__main__":
    sys.exit(main())
