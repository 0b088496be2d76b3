"""A settings instance as a Launchpad form, and a filled form as settings again: what the Launchpad shows is what will run.

Dagster's forms know scalars, choices, nested forms, unions by `kind`, lists of scalars and dicts. Two things they cannot say are
worded for them: an optional union gets the extra choice `none`, and bounds move into the description, because `read` checks
them with the settings class itself and answers with its one sentence.
"""

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vlm_core.config import Config

C = TypeVar("C", bound=Config)
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least", "max_length": "length at most"}


class Nothing(dg.Config):
    """This optional part is off."""

    kind: Literal["none"] = "none"


def form(config: Config) -> type[dg.Config]:
    """A Dagster config class with the fields of a settings instance; its values are the form's defaults."""
    return _form(type(config), config)


def read(schema: type[C], filled: dg.Config) -> C:
    """The checked settings that a filled form means. Raises ConfigError."""
    return schema.read(_meant(schema, filled))


def _meant(annotation: Any, filled: Any) -> Any:
    """Plain values of (a part of) a filled form. Dagster hands some defaults over as it read them: `{kind: {...}}` for a union."""
    members, _ = _members(annotation)
    if isinstance(filled, dg.Config):
        filled = {name: getattr(filled, name) for name in type(filled).model_fields}
    if len(members) > 1 and isinstance(filled, Mapping) and "kind" not in filled:
        (kind, inside), *_ = filled.items()
        filled = {**inside, "kind": kind}
    if members and isinstance(filled, Mapping):
        if filled.get("kind") == "none":
            return None
        member = next((m for m in members if len(members) > 1 and m.model_fields["kind"].default == filled["kind"]), members[0])
        fields = member.model_fields
        return {name: _meant(fields[name].annotation if name in fields else Any, value) for name, value in filled.items()}
    if isinstance(filled, Mapping):
        inner = get_args(annotation)[1] if get_origin(annotation) is dict else Any
        return {name: _meant(inner, value) for name, value in filled.items()}
    return filled


def filled_in(config: Config) -> dict[str, Any]:
    """A settings instance as run config for its own form (a union is written `{kind: {...}}`)."""
    return {name: _written(info.annotation, getattr(config, name)) for name, info in type(config).model_fields.items()}


def _form(schema: type[Config], config: Config | None) -> type[dg.Config]:
    fields = {name: _field(info, _value(info, config, name)) for name, info in schema.model_fields.items()}
    return create_model(schema.__name__, __base__=dg.Config, __doc__=schema.__doc__, **fields)  # type: ignore[call-overload]


def _value(info: FieldInfo, config: Config | None, name: str) -> Any:
    return getattr(config, name) if config is not None else info.get_default(call_default_factory=True)


def _field(info: FieldInfo, value: Any) -> tuple[Any, Any]:
    """(annotation, default) of one form field whose value is `value`; a value that is not known makes the field required."""
    said = {"description": _description(info)}
    members, optional = _members(info.annotation)
    missing = value is PydanticUndefined
    if len(members) > 1:
        forms = {m.model_fields["kind"].default: _form(m, value if isinstance(value, m) else None) for m in members}
        choices = (*forms.values(), *((Nothing,) if optional else ()))
        default = ... if missing else Nothing() if value is None else forms[value.kind]()  # type: ignore[attr-defined]
        return Union[choices], Field(default, discriminator="kind", **said)  # noqa: UP007
    if members:
        nested = _form(members[0], value if isinstance(value, Config) else None)
        if optional:
            return nested | None, Field(None if value is None or missing else filled_in(value), **said)
        return nested, Field(... if missing else nested(), **said)
    annotation, inner = _plain(info.annotation)
    default = ... if missing else {name: filled_in(item) for name, item in value.items()} if inner else _plain_value(value)
    return annotation, Field(default, **said)


def _description(info: FieldInfo) -> str:
    limits = [f"{word} {getattr(rule, name)}" for rule in info.metadata for name, word in BOUNDS.items() if hasattr(rule, name)]
    return "; ".join(part for part in (info.description or "", ", ".join(limits)) if part)


def _members(annotation: Any) -> tuple[list[type[Config]], bool]:
    """(settings classes among which a field chooses, whether it may be null); no classes for a field of plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation], False
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) not in {Union, types.UnionType}:
        return [], False
    parts = [_members(arg) for arg in get_args(annotation)]
    return [member for found, _ in parts for member in found], type(None) in get_args(annotation) or any(null for _, null in parts)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """(the annotation as Dagster can read it, whether it is a dict of settings)."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(args[0])
    if origin is dict:
        (members, _), value = _members(args[1]), args[1]
        return (dict[args[0], _form(members[0], None)], True) if len(members) == 1 else (dict[args[0], _plain(value)[0]], False)  # type: ignore[misc]
    if origin is list:
        return list[_bare(args[0])], False  # type: ignore[misc]
    if origin in {Union, types.UnionType}:
        kinds = [_bare(arg) for arg in args if arg is not type(None)]
        kind = float if set(kinds) == {int, float} else kinds[0]
        return (kind | None if type(None) in args else kind), False
    return annotation, False


def _bare(annotation: Any) -> Any:
    """Dagster has choices only for a whole field: inside a list or beside null a choice is a word, and `read` checks it."""
    return type(get_args(annotation)[0]) if get_origin(annotation) is Literal else _plain(annotation)[0]


def _plain_value(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, list | tuple) else value


def _written(annotation: Any, value: Any) -> Any:
    members, _ = _members(annotation)
    if len(members) > 1:
        if value is None:
            return {"none": {}}
        inside = filled_in(value)
        return {inside.pop("kind"): inside}
    if isinstance(value, Config):
        return filled_in(value)
    if isinstance(value, Mapping):
        return {name: filled_in(item) if isinstance(item, Config) else item for name, item in value.items()}
    return _plain_value(value)
