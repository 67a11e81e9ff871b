"""How commands are put together; what they take is tested in test_cli.py."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest

from tinyvae import options

typer = pytest.importorskip("typer")
arguments = pytest.importorskip("tinyvae.arguments")


@dataclass
class Place:
    """A dataclass in a command's signature."""

    row: Annotated[int, typer.Argument()]
    column: Annotated[int, typer.Option()] = 2


def test_a_dataclass_in_a_signature_stands_for_its_fields():
    @arguments.spread
    def show(place: Place, twice: bool = False) -> tuple:
        """A command."""
        return place, twice

    parameters = inspect.signature(show).parameters
    assert list(parameters) == ["twice", "row", "column"]
    assert parameters["column"].default == 2
    assert show(twice=True, row=1, column=5) == (Place(1, 5), True)
    assert show.__doc__ == "A command."


def test_the_options_of_train_come_panel_by_panel():
    fields = arguments.Training.__dataclass_fields__
    panels = [options.HELP[name].panel for name in fields if name in options.HELP]
    assert panels == sorted(panels, key=options.PANELS.index)
    first, *_, last = fields
    assert (first, last) == ("source", "samples")
