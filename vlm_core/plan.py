"""`vlm pretrain --plan`: the recipe on a list of machines, as a table; nothing is read, trained or written."""

import argparse
from pathlib import Path

from vlm_core.errors import Incompatible
from vlm_core.run import load
from vlm_core.train.config import Pretrain
from vlm_core.train.cost import cost_of
from vlm_core.train.plan import MACHINES, estimate, machine, text_of, this_machine


def main(words: list[str]) -> int:
    """`vlm pretrain --plan`. Exit code 20 when the recipe fits none of the machines."""
    parser = argparse.ArgumentParser(prog="vlm pretrain --plan", description="parameters, memory, FLOPs, time; nothing is read, trained or written")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--recipe")
    parser.add_argument("--params", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--machine", action="append", default=[], help=f"{', '.join(MACHINES)}, cpu, or NAME,memory_gb=N,tflops=N[,reached=N]; :N devices")
    parser.add_argument("--pairs", type=int, help="pairs of the snapshot; fit.samples decides where it is set")
    parser.add_argument("--in", dest="inputs", action="append", default=[], metavar="shards=PATH", help="counts the pairs of these shards")
    args = parser.parse_args(words)
    recipe, config = load("pretrain", args.recipe, args.params, tuple(args.changes))
    assert isinstance(config, Pretrain)
    seen, why = pairs_seen(config, args.pairs, args.inputs)
    cost = cost_of(config)
    machines = [machine(text) for text in args.machine] or [*MACHINES.values(), this_machine()]
    rows = [estimate(config, cost, where, seen) for where in machines]
    print(text_of(recipe, config, cost, rows, seen, why))
    if all(row.refusal for row in rows):
        raise Incompatible(rows[0].refusal)
    return 0


def pairs_seen(config: Pretrain, pairs: int | None, inputs: list[str]) -> tuple[int, str]:
    """(pairs seen in all, how that number came about)."""
    if config.fit.samples is not None:
        return config.fit.samples, "fit.samples"
    for item in inputs:
        from vlm_core.data.shards.shards import read_manifest

        pairs = int(read_manifest(Path(item.partition("=")[2]))["totals"]["train"])
    if pairs is None:
        return 1_000_000, "a million, for comparison: give --pairs N or --in shards=PATH for whole epochs"
    return pairs * config.fit.epochs, f"{config.fit.epochs} epochs of {pairs:,}"
