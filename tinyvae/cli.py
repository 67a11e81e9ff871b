"""The command line, `tinyvae`: train, look at and check variational autoencoders.

What the user can mend (a wrong option, file or checkpoint) is one line on stderr and exit code 2,
without a traceback unless TINYVAE_DEBUG=1; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ModuleNotFoundError:
    print('the command line needs: pip install "tinyvae[cli]"', file=sys.stderr)
    raise SystemExit(2) from None

from . import __version__, checking, console, options, plots, runs
from . import arguments as typed
from ._text import unknown
from .anomaly import AnomalyDetector
from .checkpoint import replacing
from .console import say
from .devices import BackendError
from .estimator import VAE
from .runs import Opened, writing
from .train import DivergedError

BAD_INPUT = (ValueError, OSError, ImportError, MemoryError, BackendError, DivergedError)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 a gradient is wrong, 2 bad input, 130 Ctrl-C."""
    typed = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["tinyvae", *typed])
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(typed, prog_name="tinyvae", standalone_mode=False, obj=command)
    except BAD_INPUT as error:
        if os.environ.get("TINYVAE_DEBUG"):
            traceback.print_exc()
        code = _complain(_message(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of typer's usage errors, but a bug
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", "tinyvae")
        code = _complain(f"{error.format_message().rstrip('.')}; see {path} --help")
    sys.exit(code or 0)


def _complain(message: str) -> int:
    line = Text.assemble(("error: ", "bold red"), " ".join(message.split()))
    err.print(line, soft_wrap=True)
    return 2


def _show_warning(
    message: Warning | str, category: Any, filename: str, lineno: int, file: Any = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """As Python would, but in one line."""
    text = Text.assemble(("warning: ", "yellow"), " ".join(str(message).split()))
    err.print(text, soft_wrap=True)


def _message(error: BaseException) -> str:
    """What an error says; one of the operating system without its number."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    return str(error) or type(error).__name__


def command(panel: str) -> Callable[[Callable], Callable]:
    """A command of the program, in that panel of --help."""
    return lambda function: app.command(rich_help_panel=panel)(typed.spread(function))


@app.callback(invoke_without_command=True)
def _tinyvae(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Train variational autoencoders, look at them, and check their gradients.

    [cyan]tinyvae train digits[/cyan]           a VAE of handwritten digits, in ten seconds
    [cyan]tinyvae sample runs/digits-*[/cyan]   new digits from it, as a picture

    DATA: digits, sprites, mnist, fashion-mnist, or a path. RUN: a folder that train wrote.
    """
    if version:
        out.print(f"tinyvae {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


# ------------------------------------------------------------------------------------------ train
@command("Train")
def train(context: typer.Context, given: typed.Training) -> None:
    """Train on DATA; write model, log and pictures to a folder.

    Ctrl-C stops and saves, and says how to go on.
    """
    chosen = {k: v for k, v in vars(given).items() if v is not None and v is not False}
    where, config = runs.plan(chosen, context.obj)
    try:
        _train(where, config, choose_bits="binarize" not in chosen)
    except KeyboardInterrupt:
        where.discard()
        if where.checkpoint.exists():
            say(out, "stopped", f"and saved; to go on:  {console.resume_command(where.path)}")
        raise typer.Exit(130) from None
    except BaseException:
        where.discard()
        raise


def _train(where: runs.RunFolder, config: runs.Config, *, choose_bits: bool) -> None:
    with console.downloads(out) as progress:
        dataset = runs.load_data(config, progress)
    if choose_bits and not where.resume:
        config.options["binarize"] = runs.default_bits(dataset.train, config)
    runs.check_data(dataset, config)
    vae = VAE(**config.options)
    log = console.Log(where, config, vae, dataset, out)
    with contextlib.closing(log), writing(where.checkpoint):
        vae.fit(
            dataset.train,
            runs.shown_labels(dataset.train_labels, config.labels),
            validation=(dataset.validation, dataset.validation_labels)
            if len(dataset.validation)
            else None,
            callbacks=[log],
            checkpoint=where.checkpoint,
            resume=where.resume and where.checkpoint.exists(),
        )
    if log.history is None:
        say(out, "run", f"{where.path}: its {len(vae.history_)} epochs were done already")
    console.finish(vae, dataset, where, config, out)


# ------------------------------------------------------------------------------------------- look
@command("Look")
def evaluate(
    of: typed.OfRun, samples: typed.EvaluationSamples = None, limit: typed.Limit = None
) -> None:
    """Give the ELBO, its terms, log p(x), and the use of the latents."""
    opened = runs.open_run(of.run, of.device)
    model = opened.model
    if samples:
        runs.Config("", model.get_params()).check_samples()
    rows, y = _rows(of, opened)
    rows, y = rows[:limit], None if y is None else y[:limit]
    result, K, log_p = model.evaluate(rows, y), 100 if samples is None else samples, None
    if K and not model.is_loss:
        with out.status(f"estimating log p(x), {K} samples a row"):
            log_p = float(model.log_likelihood(rows, K, y=y).mean(dtype=np.float64))
    say(out, "model", str(of.run))
    say(out, "data", f"{len(rows):,} {of.split} rows of {of.source or 'the run'}")
    console.show_evaluation(model, result, log_p, K, out)


@command("Look")
def sample(
    run: typed.Run, n: typed.Number = 64, seed: typed.Seed = 0, label: typed.Label = None,
    path: typed.Sampled = None, device: typed.Device = "auto",
) -> None:  # fmt: skip
    """Draw new rows from the prior, as a picture or an array; of each class, or of one."""
    opened = runs.open_run(run, device)
    model, y = opened.model, runs.label(opened.model, label)
    with _output(path, opened, "samples.png", ".png", ".npy") as file:
        if file.suffix == ".npy":
            y = plots.every_class(model, n) if y is None else y
            _save_array(file, model.sample(n, seed, y=y))
        else:
            plots.samples(model, file, n=n, seed=seed, y=y)


@command("Look")
def reconstruct(of: typed.OfRun, n: typed.Number = 32, path: typed.Picture = None) -> None:
    """Show rows of DATA and what the model makes of them."""
    opened = runs.open_run(of.run, of.device)
    with _output(path, opened, "reconstructions.png", ".png") as file:
        rows, y = _rows(of, opened)
        plots.reconstruction(opened.model, rows[:n], file, y=None if y is None else y[:n])


@command("Look")
def interpolate(
    of: typed.OfRun, pair: typed.Pair = "0,1", steps: typed.Steps = 9, path: typed.Picture = None
) -> None:
    """Go from one row to another, on a line and on an arc."""
    opened = runs.open_run(of.run, of.device)
    with _output(path, opened, "interpolation.png", ".png") as file:
        numbers = options.numbers(pair)
        if len(numbers) != 2:
            raise ValueError(f"--rows takes two row numbers, A,B; got {pair!r}")
        rows, y = _rows(of, opened)
        ends = np.stack([_row(rows, number) for number in numbers])
        names, y = [f"row {number}" for number in numbers], None if y is None else y[numbers]
        plots.interpolation(opened.model, ends, file, steps=steps, names=names, y=y)


@command("Look")
def traverse(
    of: typed.OfRun, row: typed.Row = None, steps: typed.Steps = 9, top: typed.Top = 20,
    label: typed.Label = None, path: typed.Picture = None,
) -> None:  # fmt: skip
    """Move each latent dimension over the prior's quantiles."""
    opened = runs.open_run(of.run, of.device)
    model, base, at = opened.model, None, runs.label(opened.model, label)
    if at is None and model.classes_ is not None:
        at = model.classes_[0]
    with _output(path, opened, "traversal.png", ".png") as file:
        if of.source is None and row is None and model.history_:
            kl = model.history_[-1]["kl_per_dimension"]
        else:
            rows, y = _rows(of, opened)
            base = None if row is None else _row(rows, row)
            at = y[row] if label is None and row is not None and y is not None else at
            kl = model.evaluate(rows, y).kl_per_dimension
        plots.traversal(model, file, kl=kl, row=base, steps=steps, top=top, y=at)


@command("Look")
def encode(of: typed.OfAll, path: typed.Encoded = None) -> None:
    """Write the posterior means of rows to an array."""
    opened = runs.open_run(of.run, of.device)
    with _output(path, opened, f"{of.split}-codes.npy", ".npy") as file:
        _save_array(file, opened.model.transform(*_rows(of, opened)))


@command("Look")
def impute(
    of: typed.OfAll, steps: typed.Chain = 100, seed: typed.Seed = 0, path: typed.Filled = None
) -> None:
    """Fill in the missing values, NaN, of rows; write them to an array."""
    opened = runs.open_run(of.run, of.device)
    with _output(path, opened, f"{of.split}-imputed.npy", ".npy") as file:
        rows, y = _rows(of, opened, missing=True)
        _save_array(file, opened.model.impute(rows, seed, steps=steps, y=y))


@command("Look")
def score(
    of: typed.OfAll,
    kind: typed.ScoreKind = "elbo",
    contamination: typed.Contamination = 0.05,
    path: typed.Scored = None,
) -> None:
    """Find the rows that are unlike those the run was trained on; write how normal each is."""
    opened = runs.open_run(of.run, of.device)
    with _output(path, opened, f"{of.split}-scores.npy", ".npy") as file:
        detector = AnomalyDetector(
            opened.model, score=kind, contamination=contamination, refit=False
        )
        detector.fit(_rows(replace(of, source=None, split="train"), opened)[0])
        scores = detector.score_samples(_rows(of, opened)[0])
        _save_array(file, scores)
    below = int((scores < detector.offset_).sum())
    say(out, "score", f"{below:,} of {len(scores):,} rows are below {detector.offset_:.3f}, as "
        f"{100 * contamination:g} % of the training rows are")  # fmt: skip


def _rows(
    of: typed.OfRun, opened: Opened, *, missing: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows asked about, and their labels if the model uses any; missing: NaN may be there."""
    with console.downloads(out) as progress:
        return runs.rows_for(
            opened, of.source, of.split, data_dir=of.data_dir, array=of.array, progress=progress,
            missing=missing,
        )  # fmt: skip


def _row(rows: np.ndarray, number: int) -> np.ndarray:
    if not 0 <= number < len(rows):
        raise ValueError(f"there is no row {number}: they are 0 to {len(rows) - 1}")
    return rows[number]


@contextlib.contextmanager
def _output(path: Path | None, opened: Opened, name: str, *kinds: str) -> Iterator[Path]:
    """The file to write, which is checked before the work and named after it."""
    path = path or opened.folder / name
    if path.suffix not in kinds:
        raise ValueError(f"--out must end in {' or '.join(kinds)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    with writing(path):
        yield path
    say(out, "wrote", str(path))


def _save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


# ------------------------------------------------------------------------------------------ check
@command("Check")
def gradcheck(ops: typed.Ops = None, seed: typed.Seed = 0) -> None:
    """Check every gradient against finite differences."""
    for op in ops or ():
        if op not in checking.CASES:
            raise unknown("op", op, checking.CASES)
    if console.show_gradients(ops or list(checking.CASES), seed, out):
        raise typer.Exit(1)


@command("Check")
def info() -> None:
    """Show versions, backends found or why not, and threads."""
    console.show_info(out)
