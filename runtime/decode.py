"""Strict JSON to frozen dataclasses: an unknown or missing key or a wrong type is an error naming its place.

One mechanism for every record of a bundle: the dataclass is the schema. Supported field types are str, bool,
int, float, Any, dataclasses, `X | None`, `X | Y` of scalars, tuple[X, ...], fixed tuples, dict[str, X], and
classes with a `concrete` method, whose objects say by the key `kind` which dataclass they are.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from runtime.errors import BundleError

__all__ = ["decode", "encode"]

_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number", type(None): "null"}
_WIDE = 2**63  # JSON has no limit, but NumPy and the graphs count in 64 bits


def decode(hint: Any, value: object, where: str) -> Any:
    """Convert a parsed JSON value to the type `hint`.

    Args:
        hint: a type of the list in the module docstring.
        value: what `json.loads` made.
        where: dotted path of the value, for messages.

    Raises:
        BundleError: the value does not have the type, or an object has unknown or missing keys.
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if hasattr(hint, "concrete") and not dataclasses.is_dataclass(hint):
        record = dict(_object(value, where))
        return decode(hint.concrete(record.pop("kind", None), where), record, where)
    if dataclasses.is_dataclass(hint):
        return _decode_record(typing.cast("type[Any]", hint), value, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(hint), value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(hint), value, where)
    if origin is dict:
        item = typing.get_args(hint)[1]
        return {key: decode(item, entry, f"{where}.{key}") for key, entry in _object(value, where).items()}
    if not _is_scalar(hint, value):
        raise _wrong_type(where, value, _NAMES[hint])
    return float(typing.cast("float", value)) if hint is float else value


def encode(record: Any) -> Any:
    """The JSON form of a value: dataclasses become objects, tuples lists; the inverse of `decode`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        kind = {"kind": vars(type(record))["kind"]} if hasattr(record, "concrete") else {}
        return kind | {
            field.name: encode(getattr(record, field.name)) for field in dataclasses.fields(record)
        }
    if isinstance(record, (tuple, list)):
        return [encode(entry) for entry in record]
    if isinstance(record, dict):
        return {key: encode(entry) for key, entry in record.items()}
    return record


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(where, value, "an object")
    return value


def _decode_record(cls: type[Any], value: object, where: str) -> Any:
    value = _object(value, where)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise BundleError(
                f'{where} has the unknown key "{key}" (known: {", ".join(fields)}): '
                "upgrade the runtime, or rebuild the bundle with `python -m export.build`"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in value and required:
            raise BundleError(
                f'{where} lacks the key "{name}": rebuild the bundle with `python -m export.build`'
            )
    return cls(**{key: decode(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})


def _decode_union(options: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return decode(rest[0], value, where)
    for option in rest:
        if _is_scalar(option, value):
            return value
    raise _wrong_type(where, value, " or ".join(_NAMES[option] for option in rest))


def _decode_tuple(items: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(where, value, "a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(decode(items[0], entry, f"{where}[{at}]") for at, entry in enumerate(value))
    if len(value) != len(items):
        raise _wrong_type(where, value, f"a list of {len(items)}")
    return tuple(
        decode(item, entry, f"{where}[{at}]")
        for at, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _is_scalar(hint: Any, value: object) -> bool:
    if isinstance(value, bool) or hint is bool:  # JSON true is not the integer 1
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and not -_WIDE <= value < _WIDE:
        return False
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, hint)


def _wrong_type(where: str, value: object, expected: str) -> BundleError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return BundleError(
        f"{where} is {shown}, expected {expected}: rebuild the bundle with `python -m export.build`"
    )
