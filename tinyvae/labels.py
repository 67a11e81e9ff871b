"""What rows are called: labels of classes, or conditions of real values, as a model sees them.

A class is a number to the network, its place among the sorted labels; -1 stands for an unknown one.
A condition goes in as it is.  Sizes: N rows, C classes or columns of a condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .data import check_finite

UNKNOWN = -1  # in y: this row's label is not known


def checked(y: Any, rows: int | None = None) -> np.ndarray:
    """y as an array (N,) of labels or (N, C) of floats.

    Raises ValueError for anything else, and if there are not as many as rows.
    """
    y = np.asarray(y)
    if y.dtype == object:
        y = np.array(y.tolist())
    if not (y.ndim == 1 and y.dtype.kind in "biufU") and not (y.ndim == 2 and y.dtype.kind == "f"):
        raise ValueError(
            f"y must be labels (N,), or a condition (N, C) of floats; got {y.dtype} {y.shape}"
        )
    if y.dtype.kind == "f":
        check_finite(y, "y")
    if rows is not None and len(y) != rows:
        raise ValueError(f"y has {len(y)} labels for {rows} rows")
    return y


@dataclass(frozen=True, eq=False)
class Labels:
    """What the rows that a model was trained on were called.

    classes: (C,) the labels that occurred, sorted; None for a condition of `columns` real values.
    """

    classes: np.ndarray | None
    columns: int = 0

    @classmethod
    def of(cls, y: np.ndarray) -> Labels:
        """The labels that occur in y, but for the unknown; ValueError if there are none."""
        if y.ndim == 2:
            return cls(None, y.shape[1])
        if y.dtype.kind == "f" and (y != np.floor(y)).any():
            raise ValueError("y holds real numbers: a condition of one column is (N, 1), not (N,)")
        classes = np.unique(y[~_unknown(y)])
        if len(classes) == 0:
            raise ValueError("y holds no label: all of them are unknown (-1)")
        return cls(classes)

    @property
    def size(self) -> int:
        """Numbers that a row's label is to a network: one for each class, or the columns."""
        return self.columns if self.classes is None else len(self.classes)

    def codes(self, y: Any, rows: int, *, dtype: Any, partly: bool = False) -> np.ndarray:
        """y of so many rows as the network sees it: whole numbers (N,), or floats (N, C).

        y: one for each row, or one for all; partly: whether some may be unknown.
        Raises ValueError for labels that are not among the classes, and for too few or many.
        """
        y = np.asarray(y)
        if y.ndim == (0 if self.classes is not None else 1):  # one for all
            y = np.repeat(y[None], rows, axis=0)
        if self.classes is None:
            y = checked(y.astype(dtype) if y.dtype.kind in "biu" else y, rows)
            if y.ndim != 2 or y.shape[1] != self.columns:
                raise ValueError(f"y has shape {y.shape}, expected {(rows, self.columns)}")
            return y.astype(dtype)
        y = checked(y, rows)
        if y.ndim != 1:
            raise ValueError(f"y has shape {y.shape}, but fit saw the labels {self}")
        unknown = _unknown(y)
        if (y.dtype.kind == "U") != (self.classes.dtype.kind == "U"):
            found = np.full(len(y), -1)
        else:
            found = np.searchsorted(self.classes, y).clip(max=len(self.classes) - 1)
            found = np.where(self.classes[found] == y, found, -1)
        if wrong := ((found < 0) & ~(unknown & partly)).nonzero()[0].tolist():
            what = "is unknown (-1)" if unknown[wrong[0]] else f"has the label {y[wrong[0]]}"
            raise ValueError(f"y {what} in row {wrong[0]}; the labels are {self}")
        return found

    def parse(self, text: str) -> Any:
        """The label, or the condition, that is spelled so; ValueError if there is none."""
        if self.classes is None:
            try:
                return np.array([float(part) for part in text.split(",")])
            except ValueError:
                raise ValueError(
                    f"expected {self.columns} numbers with commas between, got {text!r}"
                ) from None
        for label in self.classes:
            if str(label) == text:
                return label
        raise ValueError(f"there is no label {text!r}; the labels are {self}")

    def __str__(self) -> str:
        """The classes, with commas between."""
        if self.classes is None:
            return f"{self.columns} real numbers a row"
        shown = [str(label) for label in self.classes[:20]]
        return ", ".join(shown) + (", .." if len(self.classes) > 20 else "")


def _unknown(y: np.ndarray) -> np.ndarray:
    """Where the label is not known: -1, or "-1" among texts."""
    return y == ("-1" if y.dtype.kind == "U" else UNKNOWN)


__all__ = ["UNKNOWN", "Labels", "checked"]
