"""schedules.py: numbers over time, and their spelling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.schedules import KINDS, Constant, Cosine, Cyclical, Linear, parse, spell


def values(schedule, *epochs):
    return [schedule(epoch) for epoch in epochs]


def test_constant():
    assert values(Constant(0.3), 0, 7.5) == [0.3, 0.3]


def test_linear_rises_and_then_stays():
    assert values(Linear(0, 2, 4), 0, 1, 2.5, 4, 100) == [0, 0.5, 1.25, 2, 2]
    assert values(Linear(1, 0, 2), 0, 1, 2, 3) == [1, 0.5, 0, 0]


def test_cyclical_rises_on_the_first_part_of_every_cycle():
    schedule = Cyclical(0, 1, 4, 0.5)
    assert values(schedule, 0, 1, 2, 3.9) == [0, 0.5, 1, 1]
    assert values(schedule, 4, 5, 6, 7.9) == [0, 0.5, 1, 1]
    assert values(Cyclical(1, 3, 10, 1.0), 0, 5, 9) == [1, 2, pytest.approx(2.8)]


def test_cosine_falls_on_half_a_wave():
    schedule = Cosine(1.0, 0.2, 10)
    assert values(schedule, 0, 10, 50) == pytest.approx([1, 0.2, 0.2])
    assert schedule(5) == pytest.approx(0.6)
    assert schedule(2.5) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        (0.5, Constant(0.5)),
        (2, Constant(2.0)),
        (np.float32(0.5), Constant(0.5)),
        ("0.5", Constant(0.5)),
        ("1e-3", Constant(0.001)),
        ("constant:4", Constant(4)),
        ("linear", Linear()),
        ("linear:0:1:5", Linear(0, 1, 5)),
        ("cyclical:0:1:4:0.25", Cyclical(0, 1, 4, 0.25)),
        ("cosine:1e-3:0:20", Cosine(0.001, 0, 20)),
    ],
)
def test_parse(text, schedule):
    assert parse(text) == schedule


def test_a_schedule_passes_through():
    for schedule in (Linear(0, 1, 3), lambda epoch: epoch):
        assert parse(schedule) is schedule


NUMBERS = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-6, 1e6)
SCHEDULES = st.one_of(
    st.builds(Constant, NUMBERS),
    st.builds(Linear, NUMBERS, NUMBERS, POSITIVE),
    st.builds(Cyclical, NUMBERS, NUMBERS, POSITIVE, POSITIVE),
    st.builds(Cosine, NUMBERS, NUMBERS, POSITIVE),
)


@given(schedule=SCHEDULES)
def test_what_is_spelled_is_read_back(schedule):
    text = spell(schedule)
    assert isinstance(text, str)
    assert parse(text) == schedule
    assert spell(text) == text


@given(schedule=SCHEDULES, epoch=st.floats(0, 1e6))
def test_every_value_is_finite(schedule, epoch):
    assert math.isfinite(schedule(epoch))


def test_numbers_and_texts_are_spelled_as_they_are():
    assert spell(0.5) == 0.5
    assert spell("linear:0:1:5") == "linear:0:1:5"


def test_a_schedule_of_ones_own_cannot_be_spelled():
    with pytest.raises(TypeError, match="cannot be written down: give one of constant, linear"):
        spell(lambda epoch: epoch)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner:0:1:5", r"unknown schedule 'liner': did you mean 'linear'\? \(constant, linear"),
        ("ramp", "unknown schedule 'ramp': choose from"),
        ("", "unknown schedule ''"),
        ("linear:a:1:5", "schedule 'linear:a:1:5' is not of the form linear:start:end:epochs"),
        ("linear:0:1:5:6", "is not of the form linear:start:end:epochs"),
        ("cyclical:0:1:", "is not of the form cyclical:start:end:period:fraction"),
        ("constant:1:2", "is not of the form constant:value"),
        ("linear:0:1:0", "schedule 'linear:0:1:0': epochs must be positive"),
        ("cosine:1:0:-3", "epochs must be positive"),
        ("cyclical:0:1:0", "period must be positive"),
        ("cyclical:0:1:4:0", "fraction must be positive"),
    ],
)
def test_errors_name_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text", ["nan", "inf", "constant:nan", "linear:nan:1:5", "linear:0:1:nan", "cosine:1:-inf:3"]
)
def test_text_that_is_no_finite_number_is_refused(text):
    """Before the first step of a run, not in the middle of it."""
    with pytest.raises(ValueError, match="finite"):
        parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_usable(kind):
    assert math.isfinite(parse(kind)(3.0))
