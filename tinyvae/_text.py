"""Words of error messages that several modules share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, choices: Iterable[object]) -> ValueError:
    """The error, to be raised by the caller, for an option that is not one of `choices`.

    >>> unknown("likelihood", "bernouli", ["bernoulli", "gaussian"])
    ValueError("unknown likelihood 'bernouli': did you mean 'bernoulli'? (bernoulli, gaussian)")
    >>> unknown("likelihood", 3, ["bernoulli", "gaussian"])
    ValueError('unknown likelihood 3: choose from (bernoulli, gaussian)')
    """
    names = [str(choice) for choice in choices]
    near = nearest(value, names)
    advice = f"did you mean {near!r}?" if near else "choose from"
    return ValueError(f"unknown {what} {value!r}: {advice} ({', '.join(names)})")


def nearest(value: object, names: Iterable[str]) -> str | None:
    """The name most like `value`, whatever its case; None if none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def one_line(error: BaseException) -> str:
    """What an error says, its line breaks made spaces; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
