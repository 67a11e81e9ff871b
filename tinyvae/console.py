"""What the command line says: how training goes, and what it came to.

On a terminal there is a bar, and a line every few epochs; elsewhere a plain line an epoch.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text
from threadpoolctl import threadpool_info

from . import __version__, checking, devices, plots, train
from ._text import one_line
from .data import Dataset, cache_folder
from .estimator import VAE
from .metrics import Evaluation, bits_per_dimension
from .runs import FILES, MODEL, Config, RunFolder, version, writing

PACKAGES = (
    "numpy", "numba", "safetensors", "threadpoolctl", "typer", "rich", "matplotlib", "pillow",
    "scikit-learn",
)  # fmt: skip


# -------------------------------------------------------------------------------- while it trains
class Log(train.Callback):
    """Writes a run's folder and shows its progress: a bar and some lines, or a line an epoch."""

    def __init__(
        self, folder: RunFolder, config: Config, model: VAE, dataset: Dataset, console: Console
    ):
        self.folder, self.config, self.model, self.dataset = folder, config, model, dataset
        self.console, self.epochs, self.every = console, int(config.options["epochs"]), 1
        self.history: list[dict[str, Any]] | None = None  # None before the first step
        self.bar: Progress | None = None
        self.shown, self.warned = 0.0, False
        if console.is_terminal and not console.is_dumb_terminal:
            self.every = max(1, math.ceil(self.epochs / 20))
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"), BarColumn(None),
                TextColumn("{task.fields[state]}"), TimeRemainingColumn(compact=True),
                console=console, auto_refresh=False, transient=True, expand=True,
            )  # fmt: skip

    def close(self) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()

    def on_step(self, progress: train.Progress, batches: int, nll: float, kl: float) -> None:
        """Move the bar, ten times a second."""
        if self.history is None:
            self._begin(progress, batches)
        now = time.perf_counter()
        if self.bar is None or now - self.shown < 0.1:
            return
        self.shown = now
        speed = progress.sums[2] / max(progress.epoch_seconds, 1e-9)
        bound = f"loss {nll + kl:.2f}" if self.config.is_loss else f"ELBO {-nll - kl:.2f}"
        self.bar.update(
            TaskID(0), completed=progress.epoch * batches + progress.batch, refresh=True,
            epoch=f"{progress.epoch + 1}/{self.epochs}",
            state=f"{bound}  nll {nll:.2f}  KL {kl:.2f}  {speed:,.0f} examples/s",
        )  # fmt: skip

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Write the epoch's line to metrics.jsonl, and show it."""
        assert self.history is not None
        self.folder.write_metrics(self.history)
        if record["epoch"] % self.every == 0 or record["epoch"] in (1, self.epochs):
            self.console.print(self._row(record), markup=False, soft_wrap=True)
        if "warning" in record and not self.warned:
            self.warned = True
            self.console.print(f"warning: {record['warning']}", style="yellow", markup=False)

    def _begin(self, progress: train.Progress, batches: int) -> None:
        """The first step has gone well: make the folder, say what is trained, start the bar."""
        self.folder.begin(self.config)
        self.history = progress.history
        self.folder.write_metrics(self.history)
        introduce(self.model, self.dataset, self.console)
        say(self.console, "run", f"{self.folder.path}{os.sep}   Ctrl-C stops and saves")
        self.console.print(self._titles(), style="dim", soft_wrap=True)
        if self.bar:
            self.bar.add_task("", total=self.epochs * batches, epoch="", state="")
            self.bar.start()

    def _titles(self) -> str:
        held = f"{'valid.':>9}" if len(self.dataset.validation) else ""
        bound = "loss" if self.config.is_loss else "ELBO"
        line = f"{'epoch':>{self._width()}}{bound:>9}{'nll':>9}{'KL':>7}{held}{'active':>7}"
        return f"{line}{'|grad|':>7}{'examples/s':>11}" + ("  KL by z" if self._has_room() else "")

    def _row(self, record: dict[str, Any]) -> str:
        sign, kl = -1 if self.config.is_loss else 1, record["kl_per_dimension"]
        epoch, norm = f"{record['epoch']}/{self.epochs}", record["gradient_norm"]
        line = f"{epoch:>{self._width()}}{sign * record['elbo']:>9.2f}{record['nll']:>9.2f}"
        line += f"{record['kl']:>7.2f}"
        if "validation_elbo" in record:
            line += f"{sign * record['validation_elbo']:>9.2f}"
        line += f"{record['active_units']:>4}/{self.model.network_.latent_dim:<2}"
        line += f"{norm:>7.{'1f' if norm < 1e4 else '0e'}}"
        line += f"{record['examples_per_second']:>11,.0f}"
        return f"{line}  {bars(kl)}" if self._has_room() else line

    def _width(self) -> int:
        """Of the first column."""
        return max(8, 2 * len(str(self.epochs)) + 2)

    def _has_room(self) -> bool:
        """Whether a character for each latent dimension can be shown."""
        room = self.console.width - self._width() - 62 if self.console.is_terminal else 100
        return self.console.encoding.startswith("utf") and self.model.network_.latent_dim <= room


def bars(values: list[float]) -> str:
    """A character a value: its height relative to the largest, or to 0.1."""
    top = max([*values, 0.1])
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * max(v, 0) / top))] for v in values)


def say(console: Console, name: str, text: str) -> None:
    """A line that starts with a word in bold."""
    console.print(Text.assemble((f"{name:<7} ", "bold"), text), soft_wrap=True)


def introduce(model: VAE, data: Dataset, console: Console) -> None:
    """Say what is trained on what."""
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in parts.items() if len(rows))
    shape = "x".join(map(str, data.train.shape[1:]))
    say(console, "data", f"{data.name}: {counts} rows of {shape}")
    if model.binarize:
        when = "at every step" if model.binarize == "dynamic" else "once"
        say(console, "", f"{model.binarize} binarization: bits are drawn from the values {when}")
    size = sum(tensor.data.size for tensor in model.network_.parameters())
    say(console, "model", f"{model.architecture}, {model.network_.latent_dim} latent dimensions, "
        f"{size:,} parameters, {model.likelihood}, seed {model.seed_}, "
        f"on {model.device_}")  # fmt: skip


def resume_command(folder: Path) -> str:
    """How to go on."""
    return f"tinyvae train --resume --out {shlex.quote(os.fspath(folder))}"


# ------------------------------------------------------------------------------------- at the end
def finish(
    model: VAE, dataset: Dataset, folder: RunFolder, config: Config, console: Console
) -> None:
    """Write the model and its pictures, and say what was achieved and what to do next."""
    path = folder.path
    with console.status("drawing"):
        _write(model, dataset, folder, config)
    _achieved(model, dataset, config, console)
    say(console, "files", f"{path}{os.sep}")
    for names in (FILES[:4], FILES[4:]):
        say(console, "", "  ".join(names))
    run = shlex.quote(os.fspath(path))
    for name, command, what in (
        ("next", "sample", "new rows"),
        ("", "evaluate", "estimate log p(x)"),
        ("", "traverse", "see what each z does"),
    ):
        say(console, name, f"tinyvae {command} {run}".ljust(20 + len(run)) + what)


def _write(model: VAE, dataset: Dataset, folder: RunFolder, config: Config) -> None:
    """The files that come last."""
    y = dataset.test_labels if model.uses_labels else None
    folder.write_metrics(model.history_)
    with writing(folder.path / MODEL) as file:
        model.save(file)
    with writing(folder.path / "curves.png") as file:
        plots.curves(model.history_, file, loss=config.is_loss)
    with writing(folder.path / "reconstructions.png") as file:
        plots.reconstruction(model, dataset.test[:32], file, y=None if y is None else y[:32])
    with writing(folder.path / "samples.png") as file:
        if y is None or model.classes_ is not None:
            plots.samples(model, file)
        else:  # no class to name: conditions that occur
            plots.samples(model, file, n=len(y[:64]), y=y[:64])


def _achieved(model: VAE, dataset: Dataset, config: Config, console: Console) -> None:
    """The test ELBO in nats and bits, its terms, active units and seconds."""
    test, y = dataset.test, dataset.test_labels if model.uses_labels else None
    result, last = model.evaluate(test, y), model.history_[-1]
    terms = f"(nll {result.nll:.2f} + KL {result.kl:.2f})"
    if config.is_loss:
        say(console, "test", f"loss {-result.elbo:.2f} nats {terms}; it bounds no likelihood")
    else:
        say(console, "test", f"ELBO {nats_and_bits(result.elbo, model)} {terms}")
    if config.samples:
        log_p = float(model.log_likelihood(test, config.samples, y=y).mean(dtype=np.float64))
        say(console, "", f"log p(x) {nats_and_bits(log_p, model)} ({config.samples} samples a row)")
    active = f"{result.active_units} of {model.network_.latent_dim} latent dimensions active"
    say(console, "", f"{active}; {last['seconds']:.1f} seconds, {last['epoch']} epoch"
        + "s" * (last["epoch"] > 1))  # fmt: skip


def nats_and_bits(nats: float, model: VAE) -> str:
    """A log-likelihood, or a bound of it, in both units."""
    return f"{nats:.2f} nats, {bits_per_dimension(nats, model.n_features_in_):.4f} bits/dimension"


# --------------------------------------------------------------------------------- other commands
def show_evaluation(
    model: VAE, result: Evaluation, log_p: float | None, samples: int, console: Console
) -> None:
    """Two tables: the ELBO, its terms and log p(x); the KL of each dimension, largest first."""
    table = Table("mean of the rows", Column("nats", justify="right"),
                  Column("bits/dimension", justify="right"))  # fmt: skip
    bounds = {"ELBO": result.elbo, f"log p(x), {samples} samples": log_p}
    if model.is_loss:
        table.add_row("loss, bounds no likelihood", f"{-result.elbo:.3f}")
        bounds = {}
    for name, nats in bounds.items():
        if nats is not None:
            table.add_row(
                name, f"{nats:.3f}", f"{bits_per_dimension(nats, model.n_features_in_):.4f}"
            )
    table.add_row(
        "cross-entropy" if model.likelihood_.is_loss else "nll, -log p(x|z)", f"{result.nll:.3f}"
    )
    table.add_row("KL(q(z|x), p(z))", f"{result.kl:.3f}")
    console.print(table)
    for name, value in result.log.items():
        say(console, name, f"{value:.4f}")
    kl = result.kl_per_dimension
    if not kl:
        say(
            console,
            "active",
            f"{result.active_units} of {model.network_.latent_dim} latent dimensions",
        )
        return
    active = f"active: {result.active_units} of {len(kl)}"
    table = Table("latent", Column("KL, nats", justify="right"), Column(active, min_width=40))
    for j in sorted(range(len(kl)), key=lambda j: -kl[j]):
        table.add_row(f"z{j}", f"{kl[j]:.4f}", "#" * round(40 * kl[j] / max(*kl, 1e-9)))
    console.print(table)


def show_gradients(ops: list[str], seed: int, console: Console) -> int:
    """Check the gradients of these ops and show a table; returns how many are wrong."""
    table, failed = Table("op", "backward", "error", ""), 0
    for op in ops:
        try:
            error, verdict = f"{checking.check_op(op, seed=seed):.1e}", Text("pass", "green")
        except checking.GradientError as problem:
            error, verdict, failed = str(problem), Text("FAIL", "bold red"), failed + 1
        table.add_row(Text(op), Text(checking.formula(op)[1]), Text(error), verdict)
    console.print(table)
    good = len(ops) - failed
    say(console, "", f"{good} of {len(ops)} gradients agree with finite differences to 1e-6")
    return failed


def show_info(console: Console) -> None:
    """Versions, backends and why one is missing, threads, and where data are kept."""
    say(console, "tinyvae", f"{__version__}, Python {platform.python_version()}")
    say(console, "on", f"{platform.platform()}, {os.cpu_count()} cores")
    say(console, "with", ", ".join(f"{name} {version(name) or 'missing'}" for name in PACKAGES))
    say(console, "backend", "numpy: yes, the reference")
    try:
        importlib.import_module("numba")
        say(console, "", "numba: yes, the default")
    except ImportError as error:  # missing, or not made for this NumPy
        say(console, "", f"numba: no, {one_line(error)}")
    problem = devices.problem()
    say(console, "", f"cuda: no, {problem}" if problem else f"cuda: yes, {devices.describe()}")
    for pool in threadpool_info():
        library = f"{pool['internal_api']} {pool['version'] or ''}".strip()
        say(console, "threads", f"{pool['num_threads']} of {library} ({pool['user_api']})")
    say(console, "data", f"{cache_folder('.')}: where downloads are kept")


@contextlib.contextmanager
def downloads(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows how far downloads are: a bar each, or a line each."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar, tasks = Progress(*columns, console=console), {}

    def show(done: int, total: int, name: str) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
            if console.is_terminal:
                bar.start()
            else:
                say(console, "get", f"{name}, {total / 1e6:.1f} MB")
        bar.update(tasks[name], completed=done)

    try:
        yield show
    finally:
        if tasks and console.is_terminal:
            bar.stop()
