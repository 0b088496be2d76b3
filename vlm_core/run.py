"""The one seam: a verb, its settings and its inputs in; a published folder and a Report out.

`vlm <verb>`, `dvc repro`, Dagster and a cluster all come through `run`. Nothing heavy is imported before a verb starts.
"""

import errno
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import platform
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from vlm_core import stage as stages
from vlm_core.config import WAIVER, Config, canonical_json
from vlm_core.errors import ConfigError, DiskFull, MissingInput, TakenDown, did_you_mean
from vlm_core.reading import reading
from vlm_core.redact import redacted, refuse_redacted
from vlm_core.stage import Report, Stage
from vlm_core.track import CsvTracker, Tracker

if TYPE_CHECKING:
    from vlm_core.data.lineage.revoked import Revoked


class Verb(NamedTuple):
    """Where a verb's parts live, as module:name; and what it reads."""

    does: str
    config: str
    function: str
    recipes: str
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # "pages.*" takes any number, each with a name of its own after the dot, also in the place of a required `pages`
    obeys: bool = False  # what was taken down counts among its inputs: it leaves that out of what it makes
    compared: tuple[str, ...] = ()  # inputs that it only compares with: nothing of them comes into what it makes


VERBS: dict[str, Verb] = {
    # data, in flow order
    "crawl": Verb("fetch the pages of a site or archive, politely", "vlm_core.data.crawl.config:Crawl", "vlm_core.data.crawl.crawl:crawl", "vlm_core.recipes.data"),
    "extract": Verb("pages -> candidate pairs of picture address and text", "vlm_core.data.crawl.config:Extract", "vlm_core.data.crawl.extract:extract", "vlm_core.recipes.data", ("pages",), ("pages.*",), obeys=True),
    "download": Verb("candidate pairs -> pictures, one status for every address", "vlm_core.data.crawl.config:Download", "vlm_core.data.fetch.download:download", "vlm_core.recipes.data", ("pairs",), ("pages", "pages.*"), obeys=True),
    "embed": Verb("pictures and texts -> embeddings and a search index", "vlm_core.data.config:Embed", "vlm_core.models.embed:embed", "vlm_core.recipes.data", ("images", "pairs"), ("scorer", "trained_on", "eval_sets"), compared=("trained_on", "eval_sets")),
    "filter": Verb("decide which samples stay, with a reason each", "vlm_core.data.filter.config:Filter", "vlm_core.data.filter.filters:filter_samples", "vlm_core.recipes.data", ("pairs", "images", "embeddings"), ("groups",), obeys=True),
    "recaption": Verb("further captions: reworded, translated, seen, fused; within a budget", "vlm_core.data.captions.config:Recaption", "vlm_core.models.rewrite:recaption", "vlm_core.recipes.data", ("filtered", "pairs", "embeddings"), ("images",)),
    "shard": Verb("kept samples -> reproducible tar shards, split by group", "vlm_core.data.config:Shard", "vlm_core.data.shards.shards:shard", "vlm_core.recipes.data", ("pairs", "images", "filtered", "captions"), ("pairs.*", "images.*", "filtered.*", "captions.*"), obeys=True),
    "eval-sets": Verb("labelled test sets that share nothing with the training shards and with what a scorer of ours knows", "vlm_core.data.config:EvalSets", "vlm_core.data.eval_sets.eval_sets:eval_sets", "vlm_core.recipes.data", ("shards",), ("embeddings", "shards.*"), obeys=True),
    "fingerprint": Verb("evaluation sets -> fingerprints that the filter keeps out", "vlm_core.data.config:Fingerprint", "vlm_core.models.fingerprint:fingerprint", "vlm_core.recipes.data", ("eval_sets", "embeddings")),
    "report": Verb("one page that shows a snapshot: what was kept, dropped, scored, copied, and why", "vlm_core.data.report.config:DatasetPage", "vlm_core.data.report.report:report", "vlm_core.recipes.data", ("pairs", "images", "embeddings", "filtered", "captions", "shards"), obeys=True),
    "export-data": Verb("a snapshot for others: croissant, datasheet, datacomp, hf", "vlm_core.data.config:ExportData", "vlm_core.data.lineage.exports:export_data", "vlm_core.recipes.data", ("shards",)),
    "takedown-proof": Verb("a scan of every product for what was taken down", "vlm_core.data.config:TakedownProof", "vlm_core.data.lineage.proof:takedown_proof", "vlm_core.recipes.data"),
    "catalog-compact": Verb("many small fragments of the catalog -> few, with the same answers", "vlm_core.data.config:CatalogCompact", "vlm_core.data.lineage.compact:catalog_compact", "vlm_core.recipes.data"),
    # models
    "pretrain": Verb("shards -> a vision-language model", "vlm_core.train.config:Pretrain", "vlm_core.train.pretrain:pretrain", "vlm_core.recipes.pretrain", ("shards",), ("initial",)),
    "features": Verb("run a model over the test sets once", "vlm_core.models.features_config:Features", "vlm_core.models.features:features", "vlm_core.recipes.transfer", ("model", "eval_sets")),
    "transfer": Verb("adapt a model to a task", "vlm_core.train.config:Transfer", "vlm_core.train.transfer:transfer", "vlm_core.recipes.transfer", ("features", "model"), ("eval_sets",)),
    "distil": Verb("teach a smaller student", "vlm_core.train.config:Distil", "vlm_core.train.distill:distil", "vlm_core.recipes.distill", ("shards", "teacher")),
    "evaluate": Verb("one evaluator for every model", "vlm_core.evaluate.config:Evaluate", "vlm_core.evaluate.evaluate:evaluate", "vlm_core.recipes.transfer", ("model", "shards", "eval_sets"), ("features",)),
    "compare-models": Verb("evaluations of several models -> who beats the base, with paired intervals", "vlm_core.evaluate.config:CompareModels", "vlm_core.evaluate.leaderboard:compare_models", "vlm_core.race.recipes", (), ("evaluations.*",)),
    "compare-pretraining": Verb("recipes at equal pairs seen: train, evaluate, compare", "vlm_core.race.config:ComparePretraining", "vlm_core.race.compare:compare_pretraining", "vlm_core.race.recipes", ("shards", "eval_sets")),
    "sweep": Verb("recipes x ways to filter, against plain CLIP on the crawl", "vlm_core.race.config:Sweep", "vlm_core.race.sweep:sweep", "vlm_core.race.recipes", ("pairs", "images", "embeddings", "captions")),
    "promote": Verb("register models; the challenger becomes champion only through the gate", "vlm_core.evaluate.config:Promote", "vlm_core.evaluate.registry:promote", "vlm_core.recipes.registry", ("model", "evaluation"), ("champion_evaluation", "shards", "eval_sets")),
}  # fmt: skip


def verb_named(name: str) -> Verb:
    if name not in VERBS:
        raise ConfigError(f"Found the verb {name!r}, expected a known one; {did_you_mean(name, VERBS)}")
    return VERBS[name]


def find(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def config_class(verb: str) -> type[Config]:
    found: type[Config] = find(verb_named(verb).config)
    return found


def recipes(verb: str) -> dict[str, Callable[[], Config]]:
    """The named full configurations of a verb: the functions of its recipe module, or package, that return its config class, in the order of the files."""
    schema, found = config_class(verb), dict[str, Callable[[], Config]]()
    for module in _with_parts(importlib.import_module(verb_named(verb).recipes)):
        own = [(name, value) for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        found |= {name: value for name, value in own if not name.startswith("_") and inspect.get_annotations(value, eval_str=True).get("return") is schema}
    return found


def _with_parts(module: ModuleType) -> list[ModuleType]:
    """A module, or a package with what lies in it; `base` first."""
    names = sorted((part.name for part in pkgutil.iter_modules(getattr(module, "__path__", []))), key=lambda name: (name != "base", name))
    return [module, *(importlib.import_module(f"{module.__name__}.{name}") for name in names)]


def load(verb: str, recipe: str | None = None, params: Path | None = None, changes: tuple[str, ...] = ()) -> tuple[str, Config]:
    """(recipe name, resolved config): schema default < recipe < params.yaml < changes ("a.b=c").

    params.yaml holds, per verb, recipe name -> overrides; the first name is the verb's default recipe.
    """
    chosen: Mapping[str, Any] = {}
    if params is not None:
        if not params.exists():
            raise MissingInput(f"Found no file {params}, expected the versioned choices of recipes; give --params FILE.")
        text = yaml.safe_load(params.read_text()) or {}
        unknown = [name for name in text if name not in VERBS]
        if unknown:
            raise ConfigError(f"Found the section {unknown[0]!r} in {params}, expected a verb; {did_you_mean(unknown[0], VERBS)}")
        chosen = text.get(verb) or {}
    menu = recipes(verb)
    name = recipe or next(iter(chosen), "") or next(iter(menu), "")
    recipe_name = str(name).partition("@")[0]  # table_crawl@laion: the recipe table_crawl, chosen once more under a name of its own
    if recipe_name not in menu:
        raise ConfigError(f"Found the recipe {name!r} for 'vlm {verb}', expected a known one; {did_you_mean(str(name), menu)}")
    return name, menu[recipe_name]().merged(chosen.get(name) or {}).but(*changes)


def run(verb: str, config: Config, inputs: Mapping[str, Path], out: Path, tracker: Tracker | None = None, *, recipe: str = "", force: bool = False) -> Report:
    """Run a verb and publish its output folder, or reuse the folder if settings, inputs and code are those that made it.

    Raises VlmError, TakenDown among them; nothing that was published before is touched by a run that fails, and no input is replaced by another run meanwhile.
    """
    what, out = verb_named(verb), out.absolute()
    with reading([*inputs.values(), *snapshots_named(config).values()], stages.record_of(out)):
        return _run(what, verb, config, inputs, out, tracker, recipe, force)


def _run(
    what: Verb, verb: str, config: Config, inputs: Mapping[str, Path], out: Path, tracker: Tracker | None, recipe: str, force: bool
) -> Report:  # fmt: skip
    record = stages.record_of(out)
    _check_inputs(what, verb, inputs)
    with stages.lease(record):
        stages.recover(out)
        if tracker is not None:
            tracker.keep(record)
        versions = {name: stages.data_version(path) for name, path in sorted(inputs.items())}
        spec = {
            "verb": verb,
            "recipe": recipe,
            "config": config.model_dump(mode="json"),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "versions": versions,
            "files": files_named(config),
            "takedowns": takedowns() if what.obeys else "",
            WAIVER: [found.record() for found in read_despite_takedowns(what, verb, config, inputs, versions)],
        }
        code = stages.code_version(what.function.partition(":")[0], *modules_named(config))
        spec_hash, begun_hash = (
            _digest([verb, settings, versions, spec["files"], spec["takedowns"], code]) for settings in (spec["config"], config.unplaced())
        )
        if not (force or config.reads_the_world) and (report := _reusable(record, out, spec_hash)) is not None:
            return report
        try:
            return _work(what, verb, config, inputs, out, record, tracker, recipe, spec, spec_hash, begun_hash)
        except (OSError, RuntimeError) as error:
            _say_if_full(error, verb, out)
            raise


def _check_inputs(what: Verb, verb: str, inputs: Mapping[str, Path]) -> None:
    """Raises MissingInput, ConfigError."""
    families = {name.partition(".")[0] for name in inputs if f"{name.partition('.')[0]}.*" in what.optional}
    for name in (*inputs, *(name for name in what.inputs if name not in families)):
        if name in what.inputs and not (name in inputs and inputs[name].exists()):
            found = f"nothing at {inputs[name]}" if name in inputs else "none given"
            raise MissingInput(
                f"Found {found} for the input {name!r} of 'vlm {verb}', expected a folder; run the stage that makes it, then add --in {name}=PATH."
            )
        if name not in (known := (*what.inputs, *what.optional)) and name.partition(".")[0] not in families:
            raise ConfigError(f"Found the input {name!r} for 'vlm {verb}', expected a known one; {did_you_mean(name, known)}")


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _reusable(record: Path, out: Path, spec_hash: str) -> Report | None:
    result = record / "result.json"
    if not (out.exists() and result.exists()):
        return None
    report = Report.model_validate_json(result.read_text())
    if report.spec_hash != spec_hash or report.data_version != stages.data_version(out):
        return None
    return report.model_copy(update={"reused": True})


def _say_if_full(error: BaseException, verb: str, out: Path) -> None:
    """Raises DiskFull, naming the disk, if that is what stopped the verb; first removes what it wrote in vain. Libraries that lose the error code are found out by the free space."""
    folders = [out.parent, stages.home()]
    free = {path: shutil.disk_usage(path).free for path in folders if path.exists()}
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and min(free.values()) > 2**16:
        return
    for leftover in out.parent.glob(f"{out.name}.tmp-{os.getpid()}"):
        shutil.rmtree(leftover, ignore_errors=True)
    said = " and ".join(f"{space / 1e6:,.1f} MB at {path}" for path, space in free.items())
    raise DiskFull(
        f"Found no room for what 'vlm {verb}' writes ({error}; free: {said}), expected enough for the whole of {out}; free some space and give the same command again."
    ) from None


def _work(
    what: Verb, verb: str, config: Config, inputs: Mapping[str, Path], out: Path, record: Path,
    tracker: Tracker | None, recipe: str, spec: dict[str, Any], spec_hash: str, begun_hash: str,
) -> Report:  # fmt: skip
    run_id = uuid.uuid4().hex
    state, pictures, tmp = record / "state", record / "pictures", out.with_name(f"{out.name}.tmp-{os.getpid()}")
    stamp = state / ".spec"  # says whose unfinished work this is; other processes or devices may go on with it
    if not (stamp.exists() and stamp.read_text() == begun_hash):
        shutil.rmtree(state, ignore_errors=True)
    shutil.rmtree(pictures, ignore_errors=True)
    for folder in (state, pictures, tmp):
        folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(begun_hash)
    spec = redacted(spec)  # the hashes are made; from here on it is a record
    stages.write_json(record / "spec.json", spec)
    tracker = tracker or CsvTracker(record / "metrics.csv")
    tracker.params(redacted(config.flat()))
    tracker.tags({"verb": verb, "recipe": recipe, "vlm.run_id": run_id, "spec_hash": spec_hash, "git.rev": stages.git_revision()})
    if spec[WAIVER]:
        tracker.tags({WAIVER: "; ".join(f"{row['input']} {row['version']}: {row['takedowns']}" for row in spec[WAIVER])})
    for name, version in spec["versions"].items():
        tracker.dataset(name, version, str(inputs[name]), verb)
    begin, begin_at = time.monotonic(), datetime.now(UTC)
    report: Report = find(what.function)(config, Stage(verb, inputs, tmp, state, pictures, tracker, run_id, spec["versions"], recipe))
    stages.publish(tmp, out)
    version = stages.data_version(out)
    report = report.model_copy(
        update={
            "verb": verb, "recipe": recipe, "run_id": run_id, "data_version": version, "spec_hash": spec_hash, "out": str(out),
            "seconds": round(time.monotonic() - begin, 3), "peak_memory_mb": peak_memory_mb(), "provenance": _provenance(spec),
            "tables": redacted(report.tables),
        }
    )  # fmt: skip
    if tracker.url:
        report.links["mlflow"] = tracker.url
    _remember(report, config, spec, begin_at)
    stages.write_json(record / "result.json", report.model_dump(mode="json"))  # from here on nothing is lost, whatever becomes of the tracker
    if said := _track(tracker, report, pictures):
        print(said, file=sys.stderr, flush=True)
        report.warnings.append(said)
        stages.write_json(record / "result.json", report.model_dump(mode="json"))
    shutil.rmtree(state, ignore_errors=True)
    return report


def _track(tracker: Tracker, report: Report, pictures: Path) -> str:
    """Tell the tracker how the run ended; a sentence about what it could not pass on, or ''."""
    tracker.tags({"data_version": report.data_version})
    tracker.metrics({**{f"count.{k}": float(v) for k, v in report.counts.items()}, **report.metrics, "seconds": report.seconds})
    for title, file in report.pictures.items():
        tracker.picture(title, pictures / file)
    return tracker.settle()


def files_named(config: Config) -> dict[str, str]:
    """MD5 of every file, or manifest of a folder of shards, that a setting names: other bytes under the same name are other settings."""
    found = {name: value for name, value in config.flat().items() if isinstance(value, str)}
    found |= {name: str(folder / "manifest.json") for name, folder in snapshots_named(config).items()}
    return {name: stages.file_md5(Path(value)) for name, value in found.items() if os.path.isfile(value)}


def read_despite_takedowns(what: Verb, verb: str, config: Config, inputs: Mapping[str, Path], versions: Mapping[str, str]) -> "list[Revoked]":
    """The inputs, and the snapshots that settings name, that hold what was taken down. Raises TakenDown for them unless a setting lets the verb read them."""
    if what.obeys:  # it looks at every sample itself
        return []
    from vlm_core.data.lineage.revoked import revoked, waived, waiver_of

    asked = [(name, inputs[name], version) for name, version in versions.items() if name not in what.compared]
    asked += [(name, folder, stages.data_version(folder)) for name, folder in snapshots_named(config).items()]
    found = [held for name, folder, version in asked if (held := revoked(stages.home(), name, folder, version))]
    settings = config.flat()
    if found and not waived(settings):
        waiver = waiver_of(settings)
        how = (
            f"run the job 'data' (or the stage that makes it), or set {waiver}=true, which stays on record"
            if waiver
            else "run the job 'data' (or the stage that makes it)"
        )
        raise TakenDown(f"Found {found[0].name!r} of 'vlm {verb}', {found[0]}; expected nothing of the kind; {how}.")
    return found


def snapshots_named(config: Config) -> dict[str, Path]:
    """The folders of shards that settings name, such as those that training mixes in."""
    named = {name: value for name, value in config.flat().items() if isinstance(value, str) and value}
    # os.path says no where Path raises: a long list of patterns is no name of a file
    return {name: Path(value) for name, value in named.items() if os.path.isfile(os.path.join(value, "manifest.json"))}


def takedowns() -> str:
    """Digest of everything that was taken down so far, or ''."""
    from vlm_core.data.lineage.tombstones import load

    return load(stages.home()).digest


def modules_named(config: Config) -> list[str]:
    """The modules that a config chooses by name: `kind: tip_adapter`, or the field `sigmoid` of the objectives."""
    found = []
    for name, value in config:
        if isinstance(value, Config):
            package = type(value).__module__.rpartition(".")[0]
            found += [f"{package}.{getattr(value, 'kind', name)}", *modules_named(value)]
    return found


def peak_memory_mb() -> float:
    """Largest resident size so far of this process or of one of its ended children, in MB."""
    return round(max(stages.own_peak_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024), 1)


def _provenance(spec: dict[str, Any]) -> dict[str, Any]:
    lock = stages.PACKAGE.parent / "constraints.txt"
    return {
        "git": stages.git_revision(), "constraints": stages.file_md5(lock) if lock.exists() else "", "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores", "inputs": spec["versions"], "config": spec["config"],
        "dagster_run_id": os.environ.get("VLM_DAGSTER_RUN", ""), **({WAIVER: spec[WAIVER]} if spec[WAIVER] else {}),
    }  # fmt: skip


def _remember(report: Report, config: Config, spec: dict[str, Any], begin_at: datetime) -> None:
    """Append the run, what it read and made, and the verb's own tables to the catalog."""
    import pyarrow as pa

    from vlm_core.data.lineage.catalog import append

    row = {
        "run_id": report.run_id, "dagster_run_id": report.provenance["dagster_run_id"], "kind": report.verb, "recipe": report.recipe,
        "git_rev": report.provenance["git"], "config_hash": config.digest(), "started_at": begin_at, "ended_at": datetime.now(UTC),
        "status": "ok", "output": report.data_version, "path": report.out,
    }  # fmt: skip
    inputs = [{"run_id": report.run_id, "name": name, "ref": version, "path": spec["inputs"][name]} for name, version in spec["versions"].items()]
    tables = {"runs": pa.Table.from_pylist([row]), **({"run_inputs": pa.Table.from_pylist(inputs)} if inputs else {}), **report.catalog}
    for name, table in tables.items():
        append(stages.home() / "catalog", name, table, report.run_id)


def replay(spec_file: Path) -> tuple[str, str, Config, dict[str, Path]]:
    """(verb, recipe, config, inputs) of a spec.json, to run it again by hand."""
    spec = json.loads(spec_file.read_text())
    refuse_redacted(spec["config"], str(spec_file))
    return spec["verb"], spec.get("recipe", ""), config_class(spec["verb"]).read(spec["config"]), {k: Path(v) for k, v in spec["inputs"].items()}
