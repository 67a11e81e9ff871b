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
from collections.abc import Iterator
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

from . import __version__, checking, console, likelihoods, models, plots, priors, runs
from ._text import unknown
from .anomaly import SCORES, AnomalyDetector
from .checkpoint import replacing
from .console import say
from .devices import BackendError
from .estimator import VAE
from .runs import KINDS, SPLITS, Opened, writing
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


# ---------------------------------------------------------------------------------------- options
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


# fmt: off
PATHS = f"{KINDS}: idx (.gz too), .npy, .npz, folder of images."
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a model file.")]
Source = Annotated[str | None, typer.Argument(metavar="DATA", **_help(PATHS))]
OwnSource = Annotated[str | None, typer.Argument(metavar="DATA", **_help(KINDS, "the run's own"))]
_SPLITS = f"Which rows: {', '.join(SPLITS)}, or all in order."
Split = Annotated[str, typer.Option(help=_SPLITS, metavar="NAME")]
Seed = Annotated[int, typer.Option(help="Of all random numbers.", metavar="S", min=0)]
Number = Annotated[int, typer.Option("--n", help="How many.", metavar="N", min=1)]
Steps = Annotated[int, typer.Option(help="From end to end.", metavar="N", min=2)]
Device = Annotated[str, typer.Option(
    help="Where to compute: cpu, cuda (a GPU), or auto: cuda if it can be used.", metavar="NAME")]
Picture = Annotated[Path | None, _option(
    "File to write, .png.", "--out", unit="FILE", default="beside the model")]

_of = {"panel": "Data"}
DataDir = Annotated[Path | None, _option(
    "Folder of the MNIST files.", unit="DIR", default="a cache; downloaded there", **_of)]
Array = Annotated[str | None, _option("Which array of an .npz file.", unit="NAME", **_of)]
NoValidation = Annotated[bool, _option(
    "Train on the validation rows too.", "--no-validation", **_of)]
Binarize = Annotated[str | None, _option(
    "Draw bits from grey values: dynamic (at every step), static (once) or none.", unit="NAME",
    default="dynamic if grey images meet bernoulli", **_of)]
Missing = Annotated[bool, _option("NaN is a missing value.", "--missing", **_of)]
Corruption = Annotated[str | None, _option(
    "Damage what the encoder sees in training: noise:0.3, mask:0.2 or salt:0.1.", unit="NAME",
    default="none", **_of)]
ShownLabels = Annotated[int | None, _option(
    "Show the model the labels of N training rows only, as many of each class.", "--labels",
    unit="N", default="all", min=1, **_of)]
ImageShape = Annotated[str | None, _option("Read flat rows as images.", unit="H,W,C", **_of)]

_of = {"panel": "Model"}
Model = Annotated[str | None, _option(
    f"What to train: {', '.join(models.KINDS)}; options after a colon.", unit="NAME",
    default="vae", **_of)]
Prior = Annotated[str | None, _option(
    f"p(z): {', '.join(priors.KINDS)}; options after a colon.", unit="NAME", default="standard",
    **_of)]
Flow = Annotated[str | None, _option(
    "Of the posterior: planar:8, iaf:4, ..", unit="NAME", default="none", **_of)]
LatentDim = Annotated[int | None, _option(
    "Latent dimensions.", unit="N", default="20; digits 10", **_of)]
Architecture = Annotated[str | None, _option(
    "mlp, or conv: convolutions before the dense layers.", unit="NAME", default="mlp", **_of)]
Hidden = Annotated[str | None, _option(
    "Units of each dense layer.", unit="N,N,..", default="400; digits 400,200", **_of)]
Channels = Annotated[str | None, _option(
    "Filters of each convolution.", unit="N,N,..", default="32,64", **_of)]
Activation = Annotated[str | None, _option(
    "relu, gelu, silu, elu, tanh, ..", unit="NAME", default="relu; digits gelu", **_of)]

_of = {"panel": "Objective"}
Likelihood = Annotated[str | None, _option(
    f"p(x|z): {', '.join(likelihoods.LIKELIHOODS)}; options after a colon: student:4, "
    "mixture_logistic:5. bce is a plain loss.", unit="NAME", default="bernoulli", **_of)]
Variance = Annotated[str | None, _option(
    "Of the gaussian likelihood: a number, learned (for every value) or shared.", unit="X",
    default="1", **_of)]
Beta = Annotated[float | None, _option("Weight of the KL.", unit="X", default="1", **_of)]
KLSchedule = Annotated[str | None, _option(
    "Factor of beta over the epochs: linear:0:1:10, cyclical:0:1:5, .. Or the nats that the KL is "
    "pressed to, with weight beta: capacity:0:25:50.", unit="X", default="1", **_of)]
FreeBits = Annotated[str | None, _option(
    "Nats of KL that cost nothing, per latent dimension; or group:0.5:4, total:8.", unit="X",
    default="0", **_of)]

_of = {"panel": "Optimization"}
Epochs = Annotated[int | None, _option(
    "Passes over the training rows.", unit="N", default="10; digits 120", **_of)]
BatchSize = Annotated[int | None, _option(
    "Rows in a step.", unit="N", default="128; digits 64", **_of)]
LearningRate = Annotated[str | None, _option(
    "Of Adam: a number, or over the epochs cosine:0.001:0:10, ..", unit="X",
    default="0.001; digits 0.002", **_of)]
WeightDecay = Annotated[float | None, _option(
    "Shrinks the weights, apart from Adam.", unit="X", default="0", **_of)]
ClipNorm = Annotated[float | None, _option(
    "Largest gradient norm.", unit="X", default="none", **_of)]
Patience = Annotated[int | None, _option(
    "Stop after N epochs without a better validation ELBO; keep the best weights.", unit="N",
    default="none", **_of)]
DType = Annotated[str | None, _option(
    "Of weights and rows: float32 or float64.", unit="NAME", default="float32", **_of)]
RunSeed = Annotated[int | None, _option(
    "Of all random numbers: same seed, same model.", "--seed", unit="S", default="0", min=0,
    **_of)]

_of = {"panel": "Run"}
RunDevice = Annotated[str | None, _option(
    "Where to compute: cpu, cuda (a GPU), or auto: cuda if it can be used.", "--device",
    unit="NAME", default="auto", **_of)]
Folder = Annotated[Path | None, _option(
    "Folder to write.", "--out", unit="RUN", default="runs/DATA-TIME", **_of)]
Resume = Annotated[bool, _option(
    "Continue the run in --out; only --epochs, --patience and --device may change.", "--resume",
    **_of)]
Overwrite = Annotated[bool, _option("Replace the run in --out.", "--overwrite", **_of)]
Samples = Annotated[int | None, _option(
    "Estimate log p(x) of the test rows, K samples each.", unit="K", default="0: not", **_of)]

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
Sampled = Annotated[Path | None, _option(
    "File to write, .png or .npy.", "--out", unit="FILE", default="samples.png beside the model")]
Encoded = Annotated[Path | None, _option(
    "File to write, .npy.", "--out", unit="FILE", default="SPLIT-codes.npy beside the model")]
Filled = Annotated[Path | None, _option(
    "File to write, .npy.", "--out", unit="FILE", default="SPLIT-imputed.npy beside the model")]
Chain = Annotated[int, typer.Option(help="Steps of the chain for a row.", metavar="N", min=1)]
Scored = Annotated[Path | None, _option(
    "File to write, .npy.", "--out", unit="FILE", default="SPLIT-scores.npy beside the model")]
ScoreKind = Annotated[str, typer.Option(
    "--score", help=f"{', '.join(SCORES)}.", metavar="NAME")]
Contamination = Annotated[float, typer.Option(
    help="Part of the training rows that the threshold cuts off.", metavar="X")]
Ops = Annotated[list[str] | None, typer.Argument(metavar="OP", **_help("Which.", "all"))]
# fmt: on


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
@app.command(rich_help_panel="Train")
def train(
    context: typer.Context,
    source: Source = None,
    data_dir: DataDir = None,
    array: Array = None,
    no_validation: NoValidation = False,
    labels: ShownLabels = None,
    binarize: Binarize = None,
    missing: Missing = False,
    corruption: Corruption = None,
    image_shape: ImageShape = None,
    model: Model = None,
    prior: Prior = None,
    flow: Flow = None,
    latent_dim: LatentDim = None,
    architecture: Architecture = None,
    hidden: Hidden = None,
    channels: Channels = None,
    activation: Activation = None,
    likelihood: Likelihood = None,
    variance: Variance = None,
    beta: Beta = None,
    kl_schedule: KLSchedule = None,
    free_bits: FreeBits = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None,
    clip_norm: ClipNorm = None,
    patience: Patience = None,
    dtype: DType = None,
    seed: RunSeed = None,
    device: RunDevice = None,
    folder: Folder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    samples: Samples = None,
) -> None:
    """Train on DATA; write model, log and pictures to a folder.

    Ctrl-C stops and saves, and says how to go on.
    """
    given = {k: v for k, v in context.params.items() if v is not None and v is not False}
    where, config = runs.plan(given, context.obj)
    try:
        _train(where, config, choose_bits="binarize" not in given)
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
@app.command(rich_help_panel="Look")
def evaluate(
    run: Run,
    source: OwnSource = None,
    samples: EvaluationSamples = None,
    split: Split = "test",
    limit: Limit = None,
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Give the ELBO, its terms, log p(x), and the use of the latents."""
    opened = runs.open_run(run, device)
    model = opened.model
    if samples:
        runs.Config("", model.get_params()).check_samples()
    rows, y = _rows(opened, source, split, data_dir, array)
    rows, y = rows[:limit], None if y is None else y[:limit]
    result, K, log_p = model.evaluate(rows, y), 100 if samples is None else samples, None
    if K and not model.is_loss:
        with out.status(f"estimating log p(x), {K} samples a row"):
            log_p = float(model.log_likelihood(rows, K, y=y).mean(dtype=np.float64))
    say(out, "model", str(run))
    say(out, "data", f"{len(rows):,} {split} rows of {source or 'the run'}")
    console.show_evaluation(model, result, log_p, K, out)


@app.command(rich_help_panel="Look")
def sample(
    run: Run,
    n: Number = 64,
    seed: Seed = 0,
    label: Label = None,
    path: Sampled = None,
    device: Device = "auto",
) -> None:
    """Draw new rows from the prior, as a picture or an array; of each class, or of one."""
    opened = runs.open_run(run, device)
    model, y = opened.model, runs.label(opened.model, label)
    with _output(path, opened, "samples.png", ".png", ".npy") as file:
        if file.suffix == ".npy":
            y = plots.every_class(model, n) if y is None else y
            _save_array(file, model.sample(n, seed, y=y))
        else:
            plots.samples(model, file, n=n, seed=seed, y=y)


@app.command(rich_help_panel="Look")
def reconstruct(
    run: Run,
    source: OwnSource = None,
    n: Number = 32,
    path: Picture = None,
    split: Split = "test",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Show rows of DATA and what the model makes of them."""
    opened = runs.open_run(run, device)
    with _output(path, opened, "reconstructions.png", ".png") as file:
        rows, y = _rows(opened, source, split, data_dir, array)
        plots.reconstruction(opened.model, rows[:n], file, y=None if y is None else y[:n])


@app.command(rich_help_panel="Look")
def interpolate(
    run: Run,
    source: OwnSource = None,
    pair: Pair = "0,1",
    steps: Steps = 9,
    path: Picture = None,
    split: Split = "test",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Go from one row to another, on a line and on an arc."""
    opened = runs.open_run(run, device)
    with _output(path, opened, "interpolation.png", ".png") as file:
        numbers = runs.numbers(pair)
        if len(numbers) != 2:
            raise ValueError(f"--rows takes two row numbers, A,B; got {pair!r}")
        rows, y = _rows(opened, source, split, data_dir, array)
        ends = np.stack([_row(rows, number) for number in numbers])
        names, y = [f"row {number}" for number in numbers], None if y is None else y[numbers]
        plots.interpolation(opened.model, ends, file, steps=steps, names=names, y=y)


@app.command(rich_help_panel="Look")
def traverse(
    run: Run,
    source: OwnSource = None,
    row: Row = None,
    steps: Steps = 9,
    top: Top = 20,
    label: Label = None,
    path: Picture = None,
    split: Split = "test",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Move each latent dimension over the prior's quantiles."""
    opened = runs.open_run(run, device)
    model, base, of = opened.model, None, runs.label(opened.model, label)
    if of is None and model.classes_ is not None:
        of = model.classes_[0]
    with _output(path, opened, "traversal.png", ".png") as file:
        if source is None and row is None and model.history_:
            kl = model.history_[-1]["kl_per_dimension"]
        else:
            rows, y = _rows(opened, source, split, data_dir, array)
            base = None if row is None else _row(rows, row)
            of = y[row] if label is None and row is not None and y is not None else of
            kl = model.evaluate(rows, y).kl_per_dimension
        plots.traversal(model, file, kl=kl, row=base, steps=steps, top=top, y=of)


@app.command(rich_help_panel="Look")
def encode(
    run: Run,
    source: OwnSource = None,
    path: Encoded = None,
    split: Split = "all",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Write the posterior means of rows to an array."""
    opened = runs.open_run(run, device)
    with _output(path, opened, f"{split}-codes.npy", ".npy") as file:
        rows, y = _rows(opened, source, split, data_dir, array)
        _save_array(file, opened.model.transform(rows, y))


@app.command(rich_help_panel="Look")
def impute(
    run: Run,
    source: OwnSource = None,
    steps: Chain = 100,
    seed: Seed = 0,
    path: Filled = None,
    split: Split = "all",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Fill in the missing values, NaN, of rows; write them to an array."""
    opened = runs.open_run(run, device)
    with _output(path, opened, f"{split}-imputed.npy", ".npy") as file:
        rows, y = _rows(opened, source, split, data_dir, array, missing=True)
        _save_array(file, opened.model.impute(rows, seed, steps=steps, y=y))


@app.command(rich_help_panel="Look")
def score(
    run: Run,
    source: OwnSource = None,
    kind: ScoreKind = "elbo",
    contamination: Contamination = 0.05,
    path: Scored = None,
    split: Split = "all",
    data_dir: DataDir = None,
    array: Array = None,
    device: Device = "auto",
) -> None:
    """Find the rows that are unlike those the run was trained on; write how normal each is."""
    opened = runs.open_run(run, device)
    with _output(path, opened, f"{split}-scores.npy", ".npy") as file:
        detector = AnomalyDetector(
            opened.model, score=kind, contamination=contamination, refit=False
        )
        detector.fit(_rows(opened, None, "train", data_dir, array)[0])
        rows, _ = _rows(opened, source, split, data_dir, array)
        scores = detector.score_samples(rows)
        _save_array(file, scores)
    below = int((scores < detector.offset_).sum())
    say(out, "score", f"{below:,} of {len(rows):,} rows are below {detector.offset_:.3f}, as "
        f"{100 * contamination:g} % of the training rows are")  # fmt: skip


def _rows(
    opened: Opened, source: str | None, split: str, data_dir: Path | None, array: str | None,
    *, missing: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    with console.downloads(out) as progress:
        return runs.rows_for(
            opened, source, split, data_dir=data_dir, array=array, progress=progress,
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
@app.command(rich_help_panel="Check")
def gradcheck(ops: Ops = None, seed: Seed = 0) -> None:
    """Check every gradient against finite differences."""
    for op in ops or ():
        if op not in checking.CASES:
            raise unknown("op", op, checking.CASES)
    if console.show_gradients(ops or list(checking.CASES), seed, out):
        raise typer.Exit(1)


@app.command(rich_help_panel="Check")
def info() -> None:
    """Show versions, backends found or why not, and threads."""
    console.show_info(out)
