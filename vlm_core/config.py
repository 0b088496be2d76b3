"""Settings: one typed, closed, frozen schema from which the Launchpad, `--set`, `params.yaml` and MLflow params follow.

    schema default  <  recipe  <  params.yaml  <  Launchpad / --set

Torch-free on purpose: asset modules and the command line import it.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_core.errors import ConfigError, UnknownKind, did_you_mean

# Field(.., json_schema_extra=PLACEMENT): where and by how many processes the work is done, not what it is. A killed run goes on with another value.
PLACEMENT: dict[str, Any] = {"placement": True}
WAIVER = "despite_takedowns"  # last part of the name of a setting that lets a verb read what holds something that was taken down


class Config(BaseModel):
    """Base of all settings. Unknown fields are refused, values are checked against their bounds, instances never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @property
    def reads_the_world(self) -> bool:
        """The result depends on more than settings and inputs (a live site), so a former one never stands for a new one."""
        return False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A checked instance. Raises ConfigError (one sentence) instead of pydantic's report."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(cls, error) from None

    def but(self, *changes: str) -> Self:
        """A checked copy with dotted changes: `config.but("model.depth=4", "objectives.sigmoid=null")`."""
        values = self.model_dump()
        for change in changes:
            path, sign, text = change.partition("=")
            if not sign:
                raise ConfigError(f"Found the setting {change!r} without '=', expected NAME=VALUE; write for instance lr=0.001.")
            _put(values, path.strip().split("."), _parse(text), change)
        return type(self).read(values)

    def merged(self, values: Mapping[str, Any]) -> Self:
        """A checked copy with nested values laid over this one (what `params.yaml` and a filled Launchpad form give)."""
        return type(self).read(_merge(self.model_dump(), values))

    def flat(self) -> dict[str, Any]:
        """Dotted names to scalars, for MLflow params and tables."""
        return dict(_flat(self.model_dump(mode="json")))

    def unplaced(self) -> dict[str, Any]:
        """The settings as JSON values, without those that are marked as PLACEMENT: what a killed run must have in common with the one that goes on."""
        return self.model_dump(mode="json", exclude=_placement(self))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal settings, equal digest."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()


def _placement(config: Config) -> dict[str, Any]:
    """The marked fields of a config and of those inside it, as `model_dump` takes them to leave them out."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("placement"):
            found[name] = True
        elif isinstance(value := getattr(config, name), Config) and (inner := _placement(value)):
            found[name] = inner
    return found


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def build(config: Config, **parts: Any) -> Any:
    """The object a config names: `kind: tip_adapter` in `vlm_core/transfer/config.py` is built by `vlm_core.transfer.tip_adapter.build`."""
    package = type(config).__module__.rpartition(".")[0]
    kind = config.kind  # type: ignore[attr-defined]
    return importlib.import_module(f"{package}.{kind}").build(config, **parts)


def kinds(union: Any) -> dict[str, type[Config]]:
    """The menu of a discriminated union: kind -> schema, in the order in which the union lists them."""
    members = get_args(get_args(union)[0]) or (get_args(union)[0],)
    return {member.model_fields["kind"].default: member for member in members}


def _parse(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"Found {text!r}, which is not a YAML value ({error.__class__.__name__}); write a number, a word, true, null, [..] or {{..}}."
        ) from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _put(values: dict[str, Any], path: list[str], value: Any, change: str) -> None:
    here: Any = values
    for name in path[:-1]:
        if not isinstance(here, dict) or name not in here:
            raise ConfigError(f"Found the setting {change!r}, but there is no {name!r} here; {did_you_mean(name, here if isinstance(here, dict) else [])}")
        if here[name] is None:
            here[name] = {}
        here = here[name]
    if not isinstance(here, dict):
        raise ConfigError(f"Found the setting {change!r}, but {'.'.join(path[:-1])!r} is a single value; set it as a whole.")
    here[path[-1]] = value


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, Mapping)):
        return over
    if "kind" in over and over["kind"] != base.get("kind"):
        return dict(over)  # another member of the union: its own defaults, not the old one's values
    return {**base, **{name: _merge(base.get(name), value) for name, value in over.items()}}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{prefix}{name}.")]
    return [(prefix.rstrip("."), json.dumps(value) if isinstance(value, list | dict) else value)]


def _explain(cls: type[Config], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or cls.__name__
    more = f" ({error.error_count() - 1} more settings are wrong)" if error.error_count() > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            name = str(first["loc"][-1])
            fields = _fields_at(cls, first["loc"][:-1])
            return ConfigError(f"Found the unknown setting {where!r} of {cls.__name__}, expected one that exists; {did_you_mean(name, fields)}{more}")
        case "union_tag_invalid":
            context = first["ctx"]
            menu = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
            return UnknownKind(f"Found kind {context['tag']!r} at {where!r}, expected a known one; {did_you_mean(str(context['tag']), menu)}{more}")
        case "union_tag_not_found":
            return ConfigError(f"Found no 'kind' at {where!r}, expected the name of the method; add kind: NAME.{more}")
        case "value_error":
            return ConfigError(f"{str(first['msg']).removeprefix('Value error, ')}{more}")
        case _:
            return ConfigError(f"Found {first['input']!r} for {where!r} of {cls.__name__}, expected: {first['msg'].lower()}; change that value.{more}")


def _fields_at(cls: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the schema at a location of pydantic's error; union tags in the path select the member."""
    here: list[type[BaseModel]] = [cls]
    for part in path:
        nested = [model for schema in here for model in _models_in(schema.model_fields[part].annotation if part in schema.model_fields else None)]
        tagged = [model for model in here if "kind" in model.model_fields and model.model_fields["kind"].default == part]
        here = nested or tagged or here
    return [name for schema in here for name in schema.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
