"""Numbers that change during training: the weight of the KL, the learning rate.

A schedule maps the training time in epochs (a float: 2.5 is the middle of the third) to a number.
Anything that does may be given; these here can also be spelled as text, `linear:0:1:5`, which is
what the command line and a saved configuration use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from . import spelling
from ._text import unknown

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """Always `value`."""

    value: float = 1.0

    def __call__(self, epoch: float) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` over `epochs`, then `end`: KL warm-up (Bowman et al. 2016)."""

    start: float = 0.0
    end: float = 1.0
    epochs: float = 10.0

    def __call__(self, epoch: float) -> float:
        """start + (end - start) min(epoch / epochs, 1)."""
        return self.start + (self.end - self.start) * min(epoch / self.epochs, 1.0)


@dataclass(frozen=True)
class Capacity(Linear):
    """As kl_schedule: the nats C that the KL should have, rising from `start` to `end`.

    The loss is nll + beta |KL - C|, KL the batch's mean: Burgess et al. 2018, equation 8, where
    beta is called gamma.
    """

    end: float = 25.0


@dataclass(frozen=True)
class Cyclical:
    """Every `period` epochs a new ramp from `start` to `end` over its first `fraction`.

    Cyclical KL annealing, Fu et al. 2019, equation 5.
    """

    start: float = 0.0
    end: float = 1.0
    period: float = 5.0
    fraction: float = 0.5

    def __call__(self, epoch: float) -> float:
        """A ramp on the first part of each cycle, then flat."""
        position = math.fmod(epoch, self.period) / self.period
        return self.start + (self.end - self.start) * min(position / self.fraction, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` on half a cosine over `epochs` (Loshchilov and Hutter 2017)."""

    start: float = 1e-3
    end: float = 0.0
    epochs: float = 10.0

    def __call__(self, epoch: float) -> float:
        """end + (start - end) (1 + cos(pi epoch / epochs)) / 2."""
        progress = min(epoch / self.epochs, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


KINDS: dict[str, Any] = {
    "constant": Constant,
    "linear": Linear,
    "capacity": Capacity,
    "cyclical": Cyclical,
    "cosine": Cosine,
}


def parse(value: float | str | Schedule) -> Schedule:
    """A schedule from a number, from text such as `cyclical:0:1:4`, or a schedule itself.

    Raises ValueError that names what is wrong with the text.
    """
    if callable(value):
        return value
    if isinstance(value, (int, float)):
        return Constant(_finite(value, value))
    kind = str(value).split(":")[0]
    if kind not in KINDS:
        try:
            number = float(kind)
        except ValueError:
            raise unknown("schedule", kind, KINDS) from None
        return Constant(_finite(number, value))
    schedule = spelling.parse(str(value), KINDS, "schedule")
    for number in astuple(schedule):
        _finite(number, value)
    for name in ("epochs", "period", "fraction"):
        if getattr(schedule, name, 1.0) <= 0:
            raise ValueError(f"schedule {value!r}: {name} must be positive")
    return schedule


def _finite(number: float, schedule: object) -> float:
    if not math.isfinite(number):
        raise ValueError(f"schedule {schedule!r}: its numbers must be finite")
    return float(number)


def spell(schedule: float | str | Schedule) -> str | float:
    """The text that `parse` reads back.  Raises TypeError for a schedule that is not ours."""
    if isinstance(schedule, (int, float, str)):
        return schedule
    return spelling.spell(schedule, KINDS)
