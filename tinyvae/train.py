"""The training loop: the same for every model, resumable to the same bits.

All that a run has become is in `Progress`, the network and the optimizer; all its randomness comes
from (seed, epoch) and (seed, step).  So a run continued from a checkpoint gives the very numbers
of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from . import devices
from .batches import Batch, Gather, Rows, read
from .captured import CapturedStep
from .metrics import collapse_warning, evaluate, real
from .models import Model
from .objectives import Terms
from .ops.noise import Draw, Stream
from .optim import Adam, gradient_norm
from .parallel import Shards, on_gpu, serial, shard_count, thread_count
from .recorded import RecordedStep
from .schedules import Schedule
from .tensor import NonFiniteError, Tensor, detect_nonfinite, no_grad

# What the record of an epoch holds for every model; the model's own log comes beside it.
RECORDED = frozenset(
    {"epoch", "step", "elbo", "nll", "kl", "kl_weight", "learning_rate", "gradient_norm", "seconds",
     "examples_per_second", "kl_per_dimension", "active_units", "warning", "validation_elbo",
     "validation_nll", "validation_kl"}
)  # fmt: skip
EVALUATED_ROWS = 10_000  # of the training data, where there is no validation set


class DivergedError(ArithmeticError):
    """The loss became infinite or NaN; the message names step, op and tensor."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the step at hand was finished and the state was saved."""


@dataclass(frozen=True)
class Settings:
    """How to train.  Schedules take the time in epochs; kl_weight includes beta."""

    epochs: int
    batch_size: int
    learning_rate: Schedule
    kl_weight: Schedule
    seed: int
    clip_norm: float | None = None
    patience: int | None = None
    precision: str = "float32"  # of matrix products on a GPU: "float32", "tf32" or "bf16"


@dataclass
class Progress:
    """Where a run stands: enough, with network and optimizer, to continue it."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches finished in the epoch at hand
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # nll, kl, rows so far
    log: dict[str, float] = field(default_factory=dict)  # sums of what else a model reports
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -math.inf  # the best validation ELBO
    best_epoch: int = 0
    stopped: bool = False  # by early stopping or a callback

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint (JSON has no infinity)."""
        return asdict(self) | {"best": None if math.isinf(self.best) else self.best}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The reverse of as_dict."""
        best = -math.inf if values["best"] is None else values["best"]
        return cls(**(values | {"best": best}))


class Callback:
    """Hears of training; subclass it and override what you need."""

    def on_step(self, progress: Progress, batches: int, nll: float, kl: float) -> None:
        """After a step; batches: in an epoch; nll, kl: means over this epoch so far, in nats."""

    def on_epoch(self, record: dict[str, Any]) -> bool | None:
        """After an epoch, with its line of the log.  Return True to stop training."""


MOST_RECORDED = 4  # shapes of batches: each keeps all memory of a step


class Step:
    """One update of a model from one batch, on as many shards as it is worth.

    record: whether steps may be recorded (on a GPU: captured) and run again.
    Use it as a context, which keeps BLAS on one thread and the worker threads alive:

        with Step(model, optimizer, settings) as step:
            step(x)
    """

    def __init__(self, network: Model, optimizer: Adam, settings: Settings, *, record: bool = True):
        self.network, self.optimizer, self.settings = network, optimizer, settings
        self.record = record
        self._stack = contextlib.ExitStack()
        self._recorded: dict[tuple, RecordedStep | CapturedStep | None] = {}
        self.log: dict[str, float] = {}  # means over the last batch of what else the model reports

    @property
    def states(self) -> list[str]:
        """Of the recorded steps, one for each shape of batch: "ready" is one that is used."""
        return [recorded.state for recorded in self._recorded.values() if recorded is not None]

    def __enter__(self) -> Step:
        self._shards = Shards(self.network, shard_count(self.network, self.settings.batch_size))
        self._stack.callback(self._shards.close)
        # NumPy's warnings are off: the loss itself is checked at every step, and told better
        self._stack.enter_context(np.errstate(all="ignore"))
        if not on_gpu(self.network):
            size = self.settings.batch_size
            alone = self.network.couples() and thread_count(self.network, size) > 1
            self._stack.enter_context(serial(kernels=not alone))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def __call__(
        self, batch: Any, *, epoch: float = 0.0, want_norm: bool = False
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Update the model; returns nll and kl of the rows, (B,) nats, and the gradient norm.

        batch: a Batch, a Gather of one, or an array x (B, ...), as the model sees it, on its
        device; epoch: the time, for the schedules.  The norm costs a pass over all gradients: it is
        NaN unless it is wanted, or needed for clipping.
        Raises DivergedError if the loss is not finite; nothing was changed then.
        """
        if self.settings.precision == "float32":
            return self._update(batch, epoch, want_norm)
        with devices.precision(self.settings.precision):
            return self._update(batch, epoch, want_norm)

    def _update(
        self, batch: Any, epoch: float, want_norm: bool
    ) -> tuple[np.ndarray, np.ndarray, float]:
        source = batch if isinstance(batch, (Batch, Gather)) else Batch(batch)
        settings, optimizer = self.settings, self.optimizer
        kl_weight = settings.kl_weight(epoch)
        want_norm = want_norm or settings.clip_norm is not None
        optimizer.learning_rate = settings.learning_rate(epoch)
        recorded = self._recording(source)
        if recorded is not None:
            shards = recorded.gradients(source, optimizer.steps, kl_weight, summed=want_norm)
        else:
            shards = self._gradients(read(source), kl_weight)
        # A GPU is waited for here, and for a norm: it updates while the next batch is prepared.
        loss = sum(float(_array(terms.elbo).sum(dtype=np.float64)) for terms in shards)
        loss /= -len(source)
        nll, kl = (
            np.concatenate([devices.to_host(_array(terms[i])) for terms in shards]) for i in (1, 2)
        )
        if not math.isfinite(loss):
            raise DivergedError(self._diagnose(read(source), epoch, loss))
        norm, scale = math.nan, 1.0
        if want_norm:
            norm = gradient_norm(optimizer.main)
        if settings.clip_norm is not None and norm > settings.clip_norm:
            scale = settings.clip_norm / norm
        if recorded is not None:
            recorded.update(scale)
        else:
            optimizer.step(scale=scale, each=self._shards.each)
        optimizer.zero_grad()
        self.log = _means([terms.log for terms in shards], [len(terms.nll) for terms in shards])
        self.network.after_step(shards[0])
        return nll, kl, norm

    def _gradients(self, batch: Batch, kl_weight: float) -> list[Terms]:
        def gradients(network: Model, part: slice) -> Terms:
            terms = self._objective(network, batch, part, self.optimizer.steps, kl_weight)
            terms.loss.backward()
            return terms

        return self._shards.run(gradients, len(batch))

    def _recording(self, source: Batch | Gather) -> RecordedStep | CapturedStep | None:
        """The recorded step for batches of this shape, from the second one on, if there is one."""
        key = self._shape(source) if self.record else None
        if key is None:
            return None
        if key not in self._recorded:
            self._recorded[key] = None  # the first step compiles the kernels
            return None
        recorded = self._recorded[key]
        if recorded is None and sum(map(bool, self._recorded.values())) < MOST_RECORDED:
            recorded = self._recorded[key] = self._record(source)
        return recorded if recorded is not None and recorded.fits() else None

    def _shape(self, source: Batch | Gather) -> tuple | None:
        """What batches for one recording have in common; None if there is none for such ones."""
        on_cpu = isinstance(source, Gather) or isinstance(source.x, np.ndarray)
        if on_cpu and devices.cpu_backend() != "numba":
            return None  # the reference: there is no machine code to call
        if isinstance(source, Gather):
            return source.shape, id(source.rows)
        if on_cpu:
            return (source.x.shape, source.x.dtype, source.total) if source.plain else None
        arrays = (source.x, source.y, source.mask, source.corrupted)
        return source.total, *(None if a is None else (a.shape, a.dtype) for a in arrays)

    def _record(self, source: Batch | Gather) -> RecordedStep | CapturedStep:
        """A recorded step for batches like this one."""
        if isinstance(source, Batch) and devices.is_device_array(source.x):
            whole = self.settings.clip_norm is None
            return CapturedStep(self.network, self.optimizer, self._objective, whole=whole)
        return RecordedStep(self._shards, self.optimizer, self._objective, total=source.total)

    def _objective(
        self, network: Model, batch: Batch, part: slice, step: Any, kl_weight: Any
    ) -> Terms:
        """The terms of some rows of a batch; step: its number, or a cell that holds it."""
        rows, x = batch[part], batch.x
        draw = Draw(
            len(rows), seed=self.settings.seed, step=step, first=part.start, dtype=real(x), like=x
        )
        return network.loss(rows, draw, beta=kl_weight, rows=len(batch))

    def _diagnose(self, batch: Batch, epoch: float, loss: float) -> str:
        """Say where a bad loss came from, by repeating the step with every op checked."""
        steps = self.optimizer.steps
        where = f"step {steps + 1} (epoch {int(epoch) + 1}): the loss is {loss}"
        parameters = list(self.network.named_parameters())
        for name, tensor in parameters:
            if not np.isfinite(tensor.data).all():
                return f"{where}; parameter {name} holds {_first_bad(tensor)} since the last update"
        try:
            with detect_nonfinite():
                kl_weight, whole = self.settings.kl_weight(epoch), slice(0, len(batch))
                self._objective(self.network, batch, whole, steps, kl_weight)
        except NonFiniteError as error:
            sizes = {name: float(np.abs(tensor.data).max()) for name, tensor in parameters}
            largest = max(sizes, key=lambda name: sizes[name])
            return (
                f"{where}; {error}; the largest parameter is {largest} ({sizes[largest]:.3g}). "
                "A smaller learning_rate or clip_norm=1 often helps"
            )
        return f"{where}, though every op's result is finite: the batch mean overflows"


def _array(values: Any) -> Any:
    return values.data if isinstance(values, Tensor) else values


def _means(logs: list[dict[str, Any]], rows: list[int]) -> dict[str, float]:
    """The mean of each value over all rows; of one number for a shard, weighted by its rows."""
    return {
        name: sum(
            float(np.mean(devices.to_host(_array(log[name])), dtype=np.float64)) * n
            for log, n in zip(logs, rows, strict=True)
        ) / sum(rows)
        for name in logs[0]
    }  # fmt: skip


@dataclass
class Run:
    """One training run: the loop's parts in one place."""

    network: Model
    rows: Rows
    validation: Rows | None
    optimizer: Adam
    settings: Settings
    progress: Progress
    callbacks: Sequence[Callback] = ()
    save: Callable[[], None] | None = None  # called after every epoch, and on Ctrl-C
    best_state: dict[str, Any] | None = None

    def train(self) -> None:
        """Run all epochs that are left.

        Raises DivergedError for a non-finite loss, Interrupted after Ctrl-C (only if `save` is
        given; the state was saved).
        """
        progress, settings = self.progress, self.settings
        with (
            Step(self.network, self.optimizer, settings) as step,
            _interrupts(self.save is not None) as interrupted,
        ):
            while progress.epoch < settings.epochs and not progress.stopped:
                self._epoch(step, interrupted)
                if self.save:
                    self.save()
                if interrupted.is_set():
                    raise Interrupted
        if settings.patience is not None and self.best_state is not None:
            self.network.load_state_dict(self.best_state)

    def _epoch(self, step: Step, interrupted: threading.Event) -> None:
        progress, started = self.progress, time.perf_counter()
        batches = self.rows.shuffled(self.settings.batch_size, epoch=progress.epoch)
        before, norm = progress.epoch_seconds, math.nan
        while progress.batch < len(batches):
            batch = self.rows.draw(
                batches[progress.batch], stream=Stream.BINARIZE, step=self.optimizer.steps
            )
            now, last = progress.batch / len(batches), progress.batch == len(batches) - 1
            nll, kl, norm = step(batch, epoch=progress.epoch + now, want_norm=last)
            progress.batch += 1
            for i, value in enumerate((nll, kl, np.ones_like(nll))):
                progress.sums[i] += float(value.sum(dtype=np.float64))
            for name, mean in step.log.items():
                progress.log[name] = progress.log.get(name, 0.0) + mean * len(nll)
            progress.epoch_seconds = before + time.perf_counter() - started
            mean_nll, mean_kl = (total / progress.sums[2] for total in progress.sums[:2])
            for callback in self.callbacks:
                callback.on_step(progress, len(batches), mean_nll, mean_kl)
            if interrupted.is_set() and not last:
                break  # the state as it is now is saved by `train`
        else:
            self._finish_epoch(len(batches), norm)

    def _finish_epoch(self, batches: int, norm: float) -> None:
        progress, settings = self.progress, self.settings
        nll, kl, count = progress.sums
        shown = self.validation if self.validation is not None else self._first_rows()
        with no_grad():
            self.network.after_epoch(self._first_rows())
        result = evaluate(self.network, shown, seed=settings.seed)
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": self.optimizer.steps,
            "elbo": -(nll + kl) / count,
            "nll": nll / count,
            "kl": kl / count,
            "kl_weight": settings.kl_weight(progress.epoch + 1 - 1 / batches),
            "learning_rate": self.optimizer.learning_rate,
            "gradient_norm": norm,
            "seconds": progress.seconds + progress.epoch_seconds,
            "examples_per_second": count / max(progress.epoch_seconds, 1e-9),
            "peak_memory_mb": devices.peak_memory(),
            "kl_per_dimension": list(result.kl_per_dimension),
            "active_units": result.active_units,
        }
        record |= {name: total / count for name, total in progress.log.items()}
        if self.validation is not None:
            record |= {f"validation_{k}": getattr(result, k) for k in ("elbo", "nll", "kl")}
        if warning := collapse_warning(result.kl_per_dimension, result.active_units):
            record["warning"] = warning
        progress.seconds += progress.epoch_seconds
        progress.history.append(record)
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
        progress.epoch_seconds, progress.log = 0.0, {}
        self._early_stopping(record)
        if any([callback.on_epoch(record) for callback in self.callbacks]):
            progress.stopped = True

    def _first_rows(self) -> Rows:
        return self.rows.head(EVALUATED_ROWS)

    def _early_stopping(self, record: dict[str, Any]) -> None:
        progress, patience = self.progress, self.settings.patience
        if patience is None or self.validation is None:
            return
        if record["validation_elbo"] > progress.best:
            progress.best, progress.best_epoch = record["validation_elbo"], record["epoch"]
            self.best_state = {k: v.copy() for k, v in self.network.state_dict().items()}
        progress.stopped = progress.epoch - progress.best_epoch >= patience


def _first_bad(tensor: Tensor) -> str:
    data = tensor.numpy()
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(data))[0])
    return f"{data[place]} at {place}"


@contextlib.contextmanager
def _interrupts(enabled: bool) -> Iterator[threading.Event]:
    """Inside the block Ctrl-C only sets the event, so that no update is cut in half.

    A second Ctrl-C acts at once.  Without effect outside the main thread.
    """
    event = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
