"""Parts spelled as text: `linear:0:1:5`, `mixture:10`, `vq:codes=64:decay=0.9`.

A part is a frozen dataclass; its text is its kind and the values of its fields, in their order or
by name.  That is what the command line takes and a saved model holds.  A last field that is a text
takes all that is left: `flow:planar:8` is the kind `flow` of `planar:8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ._text import unknown


def parse(value: Any, kinds: Mapping[str, type], what: str) -> Any:
    """The part of that text; an instance of one of the kinds is returned as it is.

    what: how messages call it, "schedule" say.
    Raises ValueError for an unknown kind, and for values that do not fit its fields.
    """
    if isinstance(value, tuple(kinds.values())):
        return value
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a text or one of {', '.join(kinds)}, got {value!r}")
    kind, *given = value.split(":")
    if kind not in kinds:
        raise unknown(what, kind, kinds)
    try:
        return kinds[kind](**_values(kinds[kind], given))
    except _Misfit:
        form = ":".join([kind, *(field.name for field in _settable(kinds[kind]))])
        raise ValueError(f"{what} {value!r} is not of the form {form}") from None
    except ValueError as error:
        raise ValueError(f"{what} {value!r}: {error}") from None


def spell(part: Any, kinds: Mapping[str, type]) -> str:
    """The text that `parse` reads back; TypeError for a part of no kind."""
    for kind, cls in kinds.items():
        if type(part) is cls:
            values = [getattr(part, field.name) for field in _settable(cls)]
            defaults = [field.default for field in _settable(cls)]
            while values and values[-1] == defaults[-1]:  # what is usual goes without saying
                values.pop(), defaults.pop()
            return ":".join([kind, *map(_text, values)])
    raise TypeError(f"{part!r} cannot be written down: give one of {', '.join(kinds)}")


class _Misfit(Exception):
    """Values that are too many, of the wrong type, or for no field."""


def _settable(cls: Any) -> list[Any]:
    return [field for field in fields(cls) if field.init]


def _values(cls: Any, given: list[str]) -> dict[str, Any]:
    """Field name -> value of the texts given, by place or as name=value."""
    free, found = _settable(cls), {}
    if free and free[-1].type == "str" and len(given) > len(free):  # the last takes the rest
        given = [*given[: len(free) - 1], ":".join(given[len(free) - 1 :])]
    for place, text in enumerate(given):
        name, equals, rest = text.partition("=")
        named = [field for field in free if equals and field.name == name]
        if not named and place >= len(free):
            raise _Misfit
        field, text = (named[0], rest) if named else (free[place], text)
        if field.name in found:
            raise _Misfit
        found[field.name] = _value(field.type, text)
    if any(f.default is MISSING and f.name not in found for f in free):
        raise _Misfit
    return found


def _value(kind: str, text: str) -> Any:
    """A text as the type of a field says, which stands there as a text: "int", "float | str" ..."""
    if text == "none" and "None" in kind:
        return None
    if "bool" in kind and text in ("true", "false"):
        return text == "true"
    for name, number in (("int", int), ("float", float)):
        if name in kind:
            try:
                return number(text)
            except ValueError:
                continue
    if "str" not in kind:
        raise _Misfit
    return text


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)
