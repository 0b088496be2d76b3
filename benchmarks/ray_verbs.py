"""The verbs on a local Ray cluster, workers killed with kill -9: equal data versions, and how long it took.

    python -m benchmarks.ray_verbs [--out benchmarks/results/ray.txt]

Needs the extra `ray`. Runs tests/scale/test_ray.py, which compares each verb's data version with that of one process, and writes down what passed. The times
are those of whole tests: the run in one process, a cluster that starts and ends, and the killed range done again; on a small set that is nearly all start.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

TESTS = "tests/scale/test_ray.py"


def run(folder: Path) -> ElementTree.Element:
    """The JUnit report of the tests; their output goes to ours."""
    report = folder / "report.xml"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", TESTS, f"--junitxml={report}", f"--basetemp={folder / 'tmp'}"]
    subprocess.run([sys.executable, *words], check=False)
    return ElementTree.parse(report).getroot()


def lines(report: ElementTree.Element) -> list[str]:
    out = [
        f"The verbs on a local Ray cluster: ray {version('ray')}, python {platform.python_version()}, torch {version('torch')}",
        f"{os.cpu_count()} cores, one Ray worker each (load {os.getloadavg()[0]:.1f}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')})",
        "",
    ]
    for case in report.iter("testcase"):
        failed = next((found for name in ("failure", "error", "skipped") if (found := case.find(name)) is not None), None)
        said = "passed" if failed is None else f"{failed.tag.upper()}: {(failed.get('message') or '').splitlines()[0][:120]}"
        out.append(f"{float(case.get('time', 0)):7.1f} s  {said}  {str(case.get('name')).removeprefix('test_').replace('_', ' ')}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the verbs on a local Ray cluster, with a worker killed.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlm-ray-") as folder:
        text = "\n".join(lines(run(Path(folder)))) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
