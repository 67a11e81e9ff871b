"""The engine's ops by name, and their pairs against finite differences."""

from __future__ import annotations

from gradcheck import Case, check_pair
from tinyvae import ops

OPS = {name: getattr(ops, name) for name in ops.__all__ if hasattr(getattr(ops, name), "pair")}


def check_op(name: str, case: Case) -> None:
    """The pair of an op, against finite differences."""
    check_pair(OPS[name].pair, case)
