"""spelling.py: parts as text, and back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tinyvae.spelling import parse, spell


@dataclass(frozen=True)
class Mix:
    """A part with options of all types."""

    size: int = 10
    rate: float | str = 0.5
    soft: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class Wrapped:
    """A part of another part."""

    depth: int
    inner: str = "mix"


@dataclass(frozen=True)
class Even:
    """A part that looks at its values."""

    size: int = 2

    def __post_init__(self) -> None:
        if self.size % 2:
            raise ValueError(f"size must be even, got {self.size}")


KINDS = {"mix": Mix, "wrapped": Wrapped, "even": Even}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mix", Mix()),
        ("mix:3", Mix(3)),
        ("mix:3:0.25:true", Mix(3, 0.25, True)),
        ("mix:rate=learned", Mix(rate="learned")),
        ("mix:4:soft=true:limit=2", Mix(4, soft=True, limit=2.0)),
        ("mix:limit=none", Mix()),
        ("wrapped:2:mix:3:0.25", Wrapped(2, "mix:3:0.25")),
        ("wrapped:depth=1", Wrapped(1)),
    ],
)
def test_a_text_is_read_and_spelled(text, part):
    assert parse(text, KINDS, "part") == part
    assert parse(spell(part, KINDS), KINDS, "part") == part
    assert parse(part, KINDS, "part") is part


def test_what_is_usual_goes_without_saying():
    assert spell(Mix(), KINDS) == "mix"
    assert spell(Mix(soft=True), KINDS) == "mix:10:0.5:true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mux:3", r"unknown part 'mux': did you mean 'mix'\? \(mix, wrapped, even\)"),
        ("mix:x", "part 'mix:x' is not of the form mix:size:rate:soft:limit"),
        ("mix:1.5", "is not of the form"),
        ("mix:1:2:maybe", "is not of the form"),
        ("mix:1:2:true:3:4", "is not of the form"),
        ("mix:size=1:size=2", "is not of the form"),
        ("mix:3:size=2", "is not of the form"),
        ("mix:colour=3", "is not of the form"),
        ("wrapped", "part 'wrapped' is not of the form wrapped:depth:inner"),
        ("even:3", "part 'even:3': size must be even, got 3"),
    ],
)
def test_errors_name_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, KINDS, "part")


def test_other_things_are_no_parts():
    with pytest.raises(TypeError, match="part must be a text or one of mix, wrapped, even, got 3"):
        parse(3, KINDS, "part")
    with pytest.raises(TypeError, match="cannot be written down: give one of mix"):
        spell(object(), KINDS)
