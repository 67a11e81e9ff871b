"""What the commands take: arguments and options, each declared once.

A command may ask for several at once by a parameter that is a dataclass of them: see `spread`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import runs
from .anomaly import SCORES
from .options import DATA, HELP, PANELS, RUN, Options, spell
from .runs import KINDS, SPLITS


def spread(command: Callable) -> Callable:
    """The command as typer reads it: in the place of a dataclass stand its fields, at the end."""
    own: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
        else:
            own.append(parameter)
    grouped = [p for group in groups.values()
               for p in inspect.signature(group, eval_str=True).parameters.values()]  # fmt: skip

    @functools.wraps(command)
    def typed(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        return command(**values)

    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own + grouped]
    typed.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return typed


def _help(text: str, default: str = "") -> dict[str, Any]:
    return {"help": text + (f" [dim]\\[default: {default}][/dim]" if default else ""),
            "show_default": False}  # fmt: skip


def _option(
    text: str, *names: str, unit: str | None = None, default: str = "", panel: str = "Options",
    **more: Any,
) -> Any:  # fmt: skip
    """An option whose default depends on the data or the model: not given, it is None."""
    more |= _help(text, default)
    return typer.Option(*names, metavar=unit, rich_help_panel=panel, **more)


# -------------------------------------------------------------------------------------- by itself
# fmt: off
PATHS = f"{KINDS}: idx (.gz too), .npy, .npz, folder of images."
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a model file.")]
Device = Annotated[str, typer.Option(help=HELP["device"].text, metavar="NAME")]
Split = Annotated[str, typer.Option(
    help=f"Which rows: {', '.join(SPLITS)}, or all in order.", metavar="NAME")]
Seed = Annotated[int, typer.Option(help="Of all random numbers.", metavar="S", min=0)]
Number = Annotated[int, typer.Option("--n", help="How many.", metavar="N", min=1)]
Steps = Annotated[int, typer.Option(help="From end to end.", metavar="N", min=2)]
DataDir = Annotated[Path | None, _option(
    "Folder of the MNIST files.", unit="DIR", default="a cache; downloaded there", panel=DATA)]
Array = Annotated[str | None, _option("Which array of an .npz file.", unit="NAME", panel=DATA)]
EvaluationSamples = Annotated[int | None, _option(
    "Samples a row for log p(x); 0: without it.", "--samples", unit="K", default="100", min=0)]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.", metavar="N", min=1)]
Pair = Annotated[str, typer.Option("--rows", help="From row A to row B.", metavar="A,B")]
Row = Annotated[int | None, _option(
    "Start from the code of this row.", unit="N", default="the prior's mean")]
Top = Annotated[int, typer.Option(help="How many latent dimensions.", metavar="N", min=1)]
Label = Annotated[str | None, _option(
    "Of the new rows, for a model of labels; numbers with commas between for a condition.",
    unit="LABEL", default="every class")]
Chain = Annotated[int, typer.Option(help="Steps of the chain for a row.", metavar="N", min=1)]
ScoreKind = Annotated[str, typer.Option("--score", help=f"{', '.join(SCORES)}.", metavar="NAME")]
Contamination = Annotated[float, typer.Option(
    help="Part of the training rows that the threshold cuts off.", metavar="X")]
Ops = Annotated[list[str] | None, typer.Argument(metavar="OP", **_help("Which.", "all"))]


def _file(default: str, *kinds: str) -> Any:
    return _option(f"File to write, {' or '.join(kinds)}.", "--out", unit="FILE", default=default)


Picture = Annotated[Path | None, _file("beside the model", ".png")]
Sampled = Annotated[Path | None, _file("samples.png beside the model", ".png", ".npy")]
Encoded = Annotated[Path | None, _file("SPLIT-codes.npy beside the model", ".npy")]
Filled = Annotated[Path | None, _file("SPLIT-imputed.npy beside the model", ".npy")]
Scored = Annotated[Path | None, _file("SPLIT-scores.npy beside the model", ".npy")]


# --------------------------------------------------------------------------------- several at once
@dataclass
class OfRun:
    """A run, and the rows that it is asked about."""

    run: Run
    source: Annotated[str | None, typer.Argument(
        metavar="DATA", **_help(KINDS, "the run's own"))] = None
    split: Split = "test"
    data_dir: DataDir = None
    array: Array = None
    device: Device = "auto"


@dataclass
class OfAll(OfRun):
    """The same, but all rows if none are named."""

    split: Split = "all"


@dataclass
class TrainingData:
    """What to train on."""

    source: Annotated[str | None, typer.Argument(metavar="DATA", **_help(PATHS))] = None
    data_dir: DataDir = None
    array: Array = None
    no_validation: Annotated[bool, _option(
        "Train on the validation rows too.", "--no-validation", panel=DATA)] = False
    labels: Annotated[int | None, _option(
        "Show the model the labels of N training rows only, as many of each class.", "--labels",
        unit="N", default="all", min=1, panel=DATA)] = None


@dataclass
class TrainingRun:
    """Where to write, and what to do at the end."""

    folder: Annotated[Path | None, _option(
        "Folder to write.", "--out", unit="RUN", default="runs/DATA-TIME", panel=RUN)] = None
    resume: Annotated[bool, _option(
        "Continue the run in --out; only --epochs, --patience and --device may change.",
        "--resume", panel=RUN)] = False
    overwrite: Annotated[bool, _option("Replace the run in --out.", "--overwrite", panel=RUN)] = (
        False)
    samples: Annotated[int | None, _option(
        "Estimate log p(x) of the test rows, K samples each.", unit="K", default="0: not",
        panel=RUN)] = None
# fmt: on


TYPES = {"int": int, "int | None": int, "float": float, "float | None": float, "bool": bool}


def _hyperparameter(name: str, kind: str, default: Any) -> tuple[str, Any, Any]:
    """A field that typer reads; not given, it is None, or False for a switch."""
    said, switch = HELP[name], kind == "bool"
    words = "" if switch else said.default or spell(default)
    if name in runs.DIGITS:
        words += f"; digits {spell(runs.DIGITS[name])}"
    names = [f"--{name}"] if switch else [said.flag] if said.flag else []
    least: dict[str, Any] = {} if said.least is None else {"min": said.least}
    option = _option(
        said.text, *names, unit=said.unit or None, default=words, panel=said.panel, **least
    )
    given: Any = int if least else TYPES.get(kind, str)
    return name, Annotated[given if switch else given | None, option], False if switch else None


Hyperparameters: Any = make_dataclass("Hyperparameters", [
    _hyperparameter(field.name, str(field.type), field.default)
    for panel in PANELS for field in fields(Options)
    if field.name in HELP and HELP[field.name].panel == panel
])  # fmt: skip


@dataclass
class Training(TrainingRun, Hyperparameters, TrainingData):  # the last one's options come first
    """All that `train` takes: data, hyperparameters, run."""
