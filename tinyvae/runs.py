"""Run folders: what `tinyvae train` writes, how it is planned, continued and opened again.

    config.json               everything needed to repeat the run
    metrics.jsonl             a line an epoch, the same as the checkpoint's history
    checkpoint.safetensors    after every epoch, to continue from
    model.safetensors         the finished model
    curves.png  reconstructions.png  samples.png

Every file is written under a temporary name and then renamed.  A folder appears with the first
training step, when the options and the data have proved good, and not before.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, data, devices, likelihoods
from ._text import unknown
from .checkpoint import replacing, write_json
from .estimator import VAE, load
from .labels import UNKNOWN
from .options import HELP, flag, spell

CONFIG, METRICS = "config.json", "metrics.jsonl"
CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"
PICTURES = ("curves.png", "reconstructions.png", "samples.png")
FILES = (CONFIG, METRICS, CHECKPOINT, MODEL, *PICTURES)
SPLITS = ("train", "validation", "test")
MAY_CHANGE = ("epochs", "patience", "device")  # when a run is continued
KINDS = "digits, sprites, mnist, fashion-mnist, or a path"
# Seen to give the best validation ELBO (-22.6 nats) of what trains in ten seconds on two cores.
DIGITS: dict[str, Any] = {
    "latent_dim": 10, "hidden": [400, 200], "activation": "gelu", "learning_rate": 2e-3,
    "batch_size": 64, "epochs": 120,
}  # fmt: skip


# ------------------------------------------------------------------------------------- the folder
@dataclass
class Config:
    """What config.json holds.  options: VAE's arguments; source, data_dir, array: of data.load."""

    source: str
    options: dict[str, Any]
    data_dir: str | None = None
    array: str | None = None
    validation: bool = True
    samples: int = 0
    labels: int | None = None  # how many training rows show theirs; None: all
    commands: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def is_loss(self) -> bool:
        """Whether the objective bounds no likelihood, and is called a loss."""
        return VAE(**self.options).is_loss

    def check_samples(self) -> None:
        """Raise ValueError if there is no log p(x) to estimate."""
        if self.is_loss:
            bce = self.options["likelihood"] == "bce"
            name = "bce" if bce else f"--model {self.options['model']}"
            raise ValueError(f"--samples estimates a log-likelihood, but {name} is a plain loss")

    @classmethod
    def read(cls, folder: Path) -> Config:
        """The configuration of a run; FileNotFoundError, or ValueError if it is damaged."""
        path = folder / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"there is no run in {folder}: it has no {CONFIG}")
        try:
            values = {"labels": None} | json.loads(path.read_text())  # older runs do not say
            config = cls(**{f.name: values[f.name] for f in fields(cls)})
            VAE(**config.options)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        return config


@dataclass
class RunFolder:
    """A folder to train in; `resume` keeps its checkpoint, otherwise a run in it is replaced."""

    path: Path
    resume: bool = False
    made: list[Path] | None = None  # folders that begin() made, innermost first

    @property
    def checkpoint(self) -> Path:
        """Where training is saved."""
        return self.path / CHECKPOINT

    def check_free(self, *, overwrite: bool) -> None:
        """Raise FileExistsError if there is something that neither option allows to touch."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file: --out names a folder")
        if _taken(self.path) and not (overwrite or self.resume):
            raise FileExistsError(
                f"{self.path} exists: --resume continues it, --overwrite replaces it"
            )

    def begin(self, config: Config) -> None:
        """Make the folder, remove what is stale in it, and write the configuration."""
        self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove((MODEL, *PICTURES) if self.resume else FILES)
        with writing(self.path / CONFIG) as path:
            write_json(path, asdict(config) | {"source": absolute(config.source)})

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew: a run killed at any moment leaves whole lines."""
        with writing(self.path / METRICS) as path, replacing(path, "w") as file:
            file.writelines(map(_line, history))

    def discard(self) -> None:
        """After a failure: leave nothing of a run that cannot be continued."""
        if self.resume or self.made is None or self.checkpoint.exists():
            return
        self._remove(FILES)
        for folder in self.made:
            with contextlib.suppress(OSError):  # not empty: something else is in it
                folder.rmdir()

    def _remove(self, names: tuple[str, ...]) -> None:
        """Remove these files, and what a killed run left half-written."""
        leftovers = (part for name in FILES for part in self.path.glob(f".{name}.*.part"))
        for path in (*(self.path / name for name in names), *leftovers):
            path.unlink(missing_ok=True)


def _line(record: dict[str, Any]) -> str:
    """An epoch's record as a line of JSON, which knows no NaN."""
    bad = [k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
    return json.dumps(record | dict.fromkeys(bad)) + "\n"


def _taken(path: Path) -> bool:
    """Whether anything but half-written files of a killed run is in the folder."""
    return path.is_dir() and any(p.suffix != ".part" for p in path.iterdir())


def new_folder(source: str) -> Path:
    """runs/<data>-<time>, a name that is free."""
    name, count = f"{Path(source).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}", 1
    path = Path("runs") / name
    while path.exists():
        count += 1
        path = Path("runs") / f"{name}-{count}"
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give errors of the operating system the name of the file that was meant."""
    try:
        yield path
    except OSError as error:
        if error.errno is not None and str(error.filename or ".part").endswith(".part"):
            error.filename, error.filename2 = str(path), None
        raise


@dataclass
class Opened:
    """A model, the folder to write beside it, and the configuration of its run, if it has one."""

    model: VAE
    folder: Path
    config: Config | None


def open_run(run: Path, device: str = "auto") -> Opened:
    """The model of a run folder (unfinished: of its checkpoint), or of a model file, on a device.

    Raises BackendError with the reason if that device cannot be used.
    """
    devices.resolve(device)
    path, folder = run, run.parent
    if run.is_dir():
        folder = run
        path = next((run / n for n in (MODEL, CHECKPOINT) if (run / n).is_file()), run / MODEL)
        if not path.is_file():
            raise FileNotFoundError(f"there is no model in {run}: no {MODEL}, no {CHECKPOINT}")
    model = load(path, device=device)
    return Opened(model, folder, Config.read(folder) if (folder / CONFIG).is_file() else None)


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


# --------------------------------------------------------------------------------------- the plan
def plan(given: dict[str, Any], command: str) -> tuple[RunFolder, Config]:
    """Where to train and what, from the options given; ValueError if they contradict.

    BackendError with the reason if the device cannot be used.
    """
    if "resume" in given and "overwrite" in given:
        raise ValueError("--resume continues a run, --overwrite replaces it: give one of them")
    if "resume" in given and "folder" not in given:
        raise ValueError("--resume needs --out RUN, the run to continue")
    path = Path(given["folder"]) if "folder" in given else None
    if path and "resume" in given and ("source" not in given or _taken(path)):
        folder, config = RunFolder(path, resume=True), _continued(Config.read(path), given)
    else:  # with --resume too, if the run was killed before it wrote anything
        config = _new(given)
        folder = RunFolder(path or new_folder(config.source))
    wanted = config.options.get("device", "auto")  # older runs do not say
    config.versions["device"] = devices.resolve(wanted)
    folder.check_free(overwrite="overwrite" in given)
    config.samples = given.get("samples", config.samples)
    if config.samples:
        config.check_samples()
    if config.options["patience"] is not None and not config.validation:
        raise ValueError("--patience needs validation rows: leave out --no-validation")
    config.commands.append(command)
    return folder, config


def _new(given: dict[str, Any]) -> Config:
    """A configuration from the estimator's defaults, those for digits, and the options given."""
    if "source" not in given:
        raise ValueError(f"train needs DATA: {KINDS}")
    source = given["source"]
    options = VAE().get_params() | {"random_state": 0} | (DIGITS if source == "digits" else {})
    options |= _options(given)
    if VAE(**options).has_own_sizes and "latent_dim" not in given:
        options["latent_dim"] = VAE().latent_dim  # not that of the digits
    for name in ("encoder", "decoder"):
        del options[name]
    return Config(
        source,
        {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        absolute(given["data_dir"]) if "data_dir" in given else None,
        given.get("array"),
        "no_validation" not in given,
        labels=given.get("labels"),
        versions={"tinyvae": __version__, "python": platform.python_version()}
        | {name: version(name) or "missing" for name in ("numpy", "numba")}
        | {"platform": platform.platform()},
    )


def _continued(config: Config, given: dict[str, Any]) -> Config:
    """A run's configuration with what may change; ValueError for what may not."""
    now = _options(given) | {
        k: given[k] for k in ("array", "no_validation", "labels") if k in given
    }
    then = config.options | {"array": config.array, "no_validation": not config.validation}
    then["labels"] = config.labels
    for name, value in now.items():
        if name not in MAY_CHANGE and value != then[name]:
            raise ValueError(
                f"the run was trained with {flag(name)} {spell(then[name])}, not {spell(value)}: "
                "only --epochs, --patience and --device may change"
            )
    config.options |= {name: now[name] for name in MAY_CHANGE if name in now}
    config.source = given.get("source", config.source)  # moved: fit compares the rows
    config.data_dir = absolute(given["data_dir"]) if "data_dir" in given else config.data_dir
    return config


def absolute(source: str | Path) -> str:
    """A path that means the same from everywhere; the names of data sets stay."""
    return str(source) if source in data.NAMES else str(Path(source).expanduser().absolute())


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """VAE's arguments among the options given."""
    options = {}
    for name in HELP.keys() & given.keys():
        try:
            options[name] = (HELP[name].parse or _as_it_is)(given[name])
        except ValueError as error:
            raise ValueError(f"{flag(name)}: {error}") from None
    return options


def _as_it_is(value: Any) -> Any:
    return value


# --------------------------------------------------------------------------------------- the data
def load_data(
    config: Config, progress: Callable[[int, int, str], None] | None, *, missing: bool = False
) -> data.Dataset:
    """The data of a run; progress and missing as in data.load."""
    return data.load(
        config.source, data_dir=config.data_dir, array=config.array,
        validation=config.validation, progress=progress,
        missing=missing or config.options.get("missing", False),
    )  # fmt: skip


def check_data(dataset: data.Dataset, config: Config) -> None:
    """Find a value that cannot be trained on before the first step, in the test rows too."""
    check_labels(dataset.train_labels, VAE(**config.options), config.source)
    options, hint = config.options, "scale the values to [0, 1], or use --likelihood gaussian"
    likelihood = likelihoods.resolve(options["likelihood"], options["variance"])
    missing = options.get("missing", False)  # older runs do not say
    for split in SPLITS:
        rows, name = getattr(dataset, split), f"{config.source} ({split} rows)"
        data.check_finite(rows, name, missing=missing)
        if missing and rows.dtype.kind == "f":
            rows = np.where(np.isnan(rows), likelihood.filler, rows)
        if likelihood.limits == (0, 1) and rows.dtype != np.uint8:
            data.check_range(rows, 0, 1, name, hint)
        if options["binarize"] is None:
            likelihood.check(rows, name, _top(dataset.train))


def default_bits(x: np.ndarray, config: Config) -> str | None:
    """How to binarize x: dynamically if it is grey images under Bernoulli, else not at all."""
    images = x.ndim == 4 or config.options["image_shape"]
    if config.options["likelihood"] != "bernoulli" or not images:
        return None
    bits = lambda part: (part == 0) | (part == _top(x)) | np.isnan(part)  # noqa: E731
    grey = data.first_bad(x, bits, "data")
    return "dynamic" if grey else None


def _top(x: np.ndarray) -> float:
    """What stands for 1."""
    return 255.0 if x.dtype == np.uint8 and x.max() > 1 else 1.0


def rows_for(
    opened: Opened,
    source: str | None,
    split: str,
    *,
    data_dir: Path | None = None,
    array: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    missing: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows of a data set, or of the run's own, and their labels if the model uses any.

    missing: NaN may stand in them, whatever the model was trained on.
    Raises ValueError if the model takes others.
    """
    if split not in (*SPLITS, "all"):
        raise unknown("split", split, [*SPLITS, "all"])
    if opened.config and (source is None or absolute(source) == opened.config.source):
        config = opened.config
    elif source is None:
        raise ValueError(f"give DATA, the model file does not name it: {KINDS}")
    else:
        config = Config(source, {})
    config.data_dir = config.data_dir if data_dir is None else absolute(data_dir)
    config.array = array or config.array
    model, missing = opened.model, missing or opened.model.missing
    dataset = load_data(config, progress, missing=missing)
    rows, labels = dataset.part(split)
    if len(rows) == 0:
        raise ValueError(f"{config.source} has no {split} rows")
    if rows[0].size != model.n_features_in_:
        came, expected = (" x ".join(map(str, s)) for s in (rows.shape[1:], model.row_shape_))
        raise ValueError(f"{config.source} has rows of {came} ({rows[0].size} features), but the "
                         f"model was trained on {expected} ({model.n_features_in_})")  # fmt: skip
    data.check_finite(rows, f"{config.source} ({split} rows)", missing=missing)
    if not model.uses_labels:
        return rows, None
    check_labels(labels, model, config.source)
    return rows, labels


def check_labels(labels: np.ndarray | None, model: VAE, source: str) -> None:
    """Raise ValueError if there are no labels and the model cannot do without."""
    if labels is None and model.needs_labels:
        raise ValueError(f"{source} has no labels, which --model {model.model} needs")


def shown_labels(labels: np.ndarray | None, count: int | None) -> np.ndarray | None:
    """The labels of `count` rows, as many of each class, the first ones; -1 for the others.

    Raises ValueError if there are not so many.
    """
    if count is None:
        return labels
    if labels is None or labels.ndim != 1:
        raise ValueError("--labels is for data with classes")
    classes, shown = np.unique(labels), np.full(len(labels), UNKNOWN)
    for k, label in enumerate(classes):
        rows, each = np.flatnonzero(labels == label), (count + k) // len(classes)
        if len(rows) < each:
            raise ValueError(f"--labels {count}: of class {label} there are only {len(rows)} rows")
        shown[rows[:each]] = label
    return shown


def label(model: VAE, text: str | None) -> Any:
    """The label that was given on the command line, or None for no choice among classes.

    Raises ValueError for one that the model does not know, or cannot do without.
    """
    if text is None:
        if model.needs_labels and model.classes_ is None:
            raise ValueError(f"the model needs --label, {model.labels_}, with commas between")
        return None
    if not model.uses_labels:
        raise ValueError(f"--label is for models of labels, but the model is {model.model}")
    try:
        return model.labels_.parse(text)
    except ValueError as error:
        raise ValueError(f"--label: {error}") from None
