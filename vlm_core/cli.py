"""`vlm <verb>`: params.yaml + --recipe + --set -> run(). No flag per setting.

Exit codes: 0 ok, 10 may succeed later, 20 bad input or settings, 30 a budget is spent, 130 cancelled, 1 a defect of ours.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import yaml

from vlm_core import run as seam
from vlm_core.config import Config
from vlm_core.errors import ConfigError, VlmError, did_you_mean
from vlm_core.redact import redacted
from vlm_core.stage import Report, die_with_parent
from vlm_core.switches import switch_off

# Questions and services: name -> (what it does, module:function taking the remaining arguments).
COMMANDS: dict[str, tuple[str, str]] = {
    "show": ("the resolved settings of a verb", "vlm_core.cli:show"),
    "methods": ("the catalogue of methods: kind, paper, setting", "vlm_core.methods:main"),
    "why": ("what happened to a sample and by which rule: UID (short for lineage why)", "vlm_core.data.lineage.lineage:why_main"),
    "lineage": ("why UID | samples MODEL | models --url|--domain|--sha256 | bytes MODEL --out DIR", "vlm_core.data.lineage.lineage:main"),
    "takedown": ("--uid|--url|--domain|--sha256|--pdq VALUE: out, for ever; --scan proves it", "vlm_core.data.lineage.takedown:main"),
    "verify": ("read every byte of a shards folder again and check it: verify DIR", "vlm_core.data.shards.verify:main"),
    "rollback": ("point the champion of a registered model back to the version before it", "vlm_core.evaluate.registry:main"),
    "export": ("write a model as an open_clip checkpoint", "vlm_core.models.export:main"),
    "adopt": ("make a model folder of an open_clip checkpoint", "vlm_core.models.export:main_adopt"),
    "serve": ("the read-only search service on loopback", "vlm_core.search.server:main"),
    "doctor": ("check the environment, and name the fix", "vlm_core.doctor:main"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.")


def main(argv: Sequence[str] | None = None) -> int:
    switch_off()
    die_with_parent()
    signal.signal(signal.SIGTERM, _cancel)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in {"-h", "--help", "help"}:
            print(_help())
            return 0
        if words[0] in COMMANDS:
            module, _, name = COMMANDS[words[0]][1].partition(":")
            function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
            return function(words[1:])
        if words[0] == "pretrain" and "--plan" in words:
            planned: int = importlib.import_module("vlm_core.plan").main(words[1:])
            return planned
        if words[0] not in seam.VERBS:
            raise ConfigError(f"Found {words[0]!r}, expected a verb; {did_you_mean(words[0], [*seam.VERBS, *COMMANDS])}")
        return _run(words[0], words[1:])
    except VlmError as error:
        print(redacted(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `vlm lineage ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Cancelled: nothing that was finished before is lost; the same command goes on from there.", file=sys.stderr)
        return 130


def _cancel(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _help() -> str:
    verbs = "\n".join(f"  {name:10} {verb.does}" for name, verb in seam.VERBS.items())
    more = "\n".join(f"  {name:10} {does}" for name, (does, _) in COMMANDS.items())
    return f"usage: vlm VERB [--recipe R] [--params FILE] [--set a.b=c ...] [--in name=PATH ...] --out DIR\n\nVerbs, in flow order:\n{verbs}\n\nQuestions and services:\n{more}\n\nvlm pretrain --plan: parameters, memory, FLOPs and time of a recipe on a list of machines"


def _settings(verb: str) -> _Parser:
    parser = _Parser(prog=f"vlm {verb}", description=seam.verb_named(verb).does)
    parser.add_argument("--recipe", help="named settings; the default is the first one of the verb in --params")
    parser.add_argument("--params", type=Path, help="versioned choices (params.yaml)")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="A.B=C", help="change one setting")
    return parser


def _run(verb: str, words: list[str]) -> int:
    parser = _settings(verb)
    parser.add_argument("--in", dest="inputs", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spec", type=Path, help="replay a spec.json instead of --recipe, --params and --in")
    parser.add_argument("--force", action="store_true", help="run even if the result is there already")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("--json", action="store_true", help="print the whole report")
    args = parser.parse_args(words)
    inputs: dict[str, Path] = {}
    if args.spec:
        spec_verb, recipe, config, inputs = seam.replay(args.spec)
        if spec_verb != verb:
            raise ConfigError(f"Found a spec of 'vlm {spec_verb}' in {args.spec}, expected one of 'vlm {verb}'; use that verb.")
        config = config.but(*args.changes)
    else:
        recipe, config = seam.load(verb, args.recipe, args.params, tuple(args.changes))
    for item in args.inputs:
        name, sign, path = item.partition("=")
        if not sign:
            raise ConfigError(f"Found --in {item!r}, expected NAME=PATH; write for instance --in pages=data/pages.")
        inputs[name] = Path(path)
    if args.dry_run:
        print(_yaml(config))
        return 0
    from vlm_core.track import from_environment, reaching

    tracker = from_environment(verb, recipe)
    try:
        with reaching(os.environ.get("MLFLOW_TRACKING_URI", "")):
            report = seam.run(verb, config, inputs, args.out, tracker, recipe=recipe, force=args.force)
    except BaseException as error:
        if tracker is not None:
            tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    if tracker is not None:
        tracker.close("FINISHED")
    print(json.dumps(report.model_dump(mode="json"), indent=1) if args.json else summary(report))
    return 0


def summary(report: Report) -> str:
    """One line for a person."""
    counts = ", ".join(f"{name} {value:,}" for name, value in report.counts.items() if "." not in name)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(report.metrics.items())[:6])
    verb = f"{report.verb}/{report.recipe}" if report.recipe else report.verb
    how = "unchanged, reused" if report.reused else f"{report.seconds:.1f} s, {report.peak_memory_mb:,.0f} MB"
    return f"{verb}: {'; '.join(part for part in (counts, metrics, how) if part)}; version {report.data_version}; {report.out}"


def show(words: list[str]) -> int:
    """`vlm show VERB`: the resolved settings, and the recipes to choose from."""
    if not words:
        raise ConfigError(f"Found no verb after 'vlm show', expected one; {did_you_mean('', seam.VERBS)}")
    args = _settings(words[0]).parse_args(words[1:])
    recipe, config = seam.load(words[0], args.recipe, args.params, tuple(args.changes))
    print(f"# {words[0]}, recipe {recipe} of: {', '.join(seam.recipes(words[0]))}")
    print(_yaml(config))
    return 0


def _yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
