"""One peer of the training step benchmark, in a process of its own.

    python -m benchmarks._step_worker PEER

Answers the driver's requests, one JSON line each: {"do": "prepare", "cell": ..., "device": ...,
"precision": ..., "budget": seconds} builds a cell and warms it up; {"do": "round", "variant": i}
times a round.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._cells import CHANNELS, MOVED, SAMPLES, SIDE, Cell, Z

CHECKED = 10  # steps after which losses are compared: all peers must learn the same thing


class Place(NamedTuple):
    """Where to compute, and how float32 matrices are multiplied there: float32, tf32 or bf16."""

    device: str
    precision: str = "float32"


class Variant(NamedTuple):
    """A way of doing a step; `step` returns its loss, `states` what became of its recording."""

    name: str
    step: Callable
    states: Callable[[], list[str]] = list


Variants = list[Variant]


# --------------------------------------------------------------------------- what each peer does
def _tinyvae(cell: Cell, stack: contextlib.ExitStack, place: Place) -> Variants:
    """The very step that tinyvae.train runs; on a GPU also as it is without being captured."""
    if place.device == "cpu":
        return [_our_step(cell, stack, place, "")]
    return [_our_step(cell, stack, place, name) for name in ("captured", "uncaptured")]


def _our_step(cell: Cell, stack: contextlib.ExitStack, place: Place, name: str) -> Variant:
    """On one batch again and again."""
    from tinyvae import devices, likelihoods, models, optim, schedules, spelling, train

    x = cell.data() if cell.architecture == "conv" else cell.data().reshape(cell.batch, -1)
    parts = models.Parts(
        x.shape[1:], Z, likelihoods.Bernoulli(), "conv" if cell.architecture == "conv" else "mlp",
        (cell.hidden,), CHANNELS, rng=np.random.default_rng(0),
    )  # fmt: skip
    kind = f"iwae:{SAMPLES}" if cell.architecture == "iwae" else "vae"
    network = spelling.parse(kind, models.KINDS, "model").build(parts).to(place.device)
    x = devices.move(x, place.device)
    optimizer = optim.Adam(network.parameters(), 1e-3)
    settings = train.Settings(
        epochs=1, batch_size=cell.batch, learning_rate=schedules.Constant(1e-3),
        kl_weight=schedules.Constant(1.0), seed=0, precision=place.precision,
    )  # fmt: skip
    update = train.Step(network, optimizer, settings, record=name != "uncaptured")
    stack.enter_context(update)

    def step() -> float:
        nll, kl, _ = update(x)
        return float(nll.sum() + kl.sum()) / cell.batch

    return Variant(name, step, lambda: update.states)


def _torch(
    cell: Cell, _: contextlib.ExitStack, place: Place, *, compiled: bool = False
) -> Variants:
    """Eager or compiled; for images in both memory layouts, of which the faster one counts."""
    import torch

    from ._torch_vae import training_step

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    names = {"float32": "highest", "tf32": "high", "bf16": "medium"}
    torch.set_float32_matmul_precision(names[place.precision])
    torch.backends.cudnn.allow_tf32 = place.precision != "float32"
    torch._dynamo.reset()  # it gives up on a function that was compiled for eight cells
    layouts = [("", False)]
    if cell.architecture == "conv":
        layouts = [("contiguous", False), ("channels_last", True)]
    return [
        Variant(
            name,
            training_step(
                cell, cell.data(), compiled=compiled, channels_last=last, device=place.device
            ),
        )
        for name, last in layouts
    ]


def _jax(cell: Cell, _: contextlib.ExitStack, place: Place) -> Variants:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is shared
    import jax

    from ._jax_vae import training_step

    if (jax.default_backend() == "gpu") != (place.device == "cuda"):
        raise RuntimeError(f"JAX runs on {jax.default_backend()}, not on {place.device}")
    names = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
    jax.config.update("jax_default_matmul_precision", names[place.precision])
    return [Variant("", training_step(cell, cell.data()))]


def _sgemm(cell: Cell, _: contextlib.ExitStack, place: Place) -> Variants:
    """No peer: the best rate of a large matrix product, NumPy's or ours, whatever the cell."""
    from tinyvae_kernels import product

    xp: Any = np
    if place.device == "cuda":
        import cupy

        xp = cupy
    a, out = xp.ones((SIDE, SIDE), np.float32), xp.empty((SIDE, SIDE), np.float32)

    def multiply() -> float:
        xp.matmul(a, a, out=out)
        return float(out[0, 0])

    def ours() -> float:
        product(a, a, out)
        return float(out[0, 0])

    return [Variant(xp.__name__, multiply), Variant("tinyvae", ours)]


def _copy(cell: Cell, _: contextlib.ExitStack, place: Place) -> Variants:
    """No peer: how fast memory is read and written, by as many threads as a step has."""
    from concurrent.futures import ThreadPoolExecutor

    threads = int(os.environ["OMP_NUM_THREADS"]) if place.device == "cpu" else 1
    xp: Any = np
    if place.device == "cuda":
        import cupy

        xp = cupy
    source, out = xp.ones(MOVED, np.float32), xp.ones(MOVED, np.float32)
    pool, cuts = ThreadPoolExecutor(threads), np.linspace(0, MOVED, threads + 1, dtype=int)

    def part(k: int) -> None:
        xp.copyto(out[cuts[k] : cuts[k + 1]], source[cuts[k] : cuts[k + 1]])

    def step() -> float:
        list(pool.map(part, range(threads)))
        return float(out[0])

    return [Variant("", step)]


BUILD: dict[str, Callable[[Cell, contextlib.ExitStack, Place], Variants]] = {
    "tinyvae": _tinyvae,
    "torch": _torch,
    "compile": functools.partial(_torch, compiled=True),
    "jax": _jax,
    "sgemm": _sgemm,
    "copy": _copy,
}


# ------------------------------------------------------------------------------------ the process
def _seconds(step: Callable, count: int) -> float:
    """Per step; float() waits for a loss that is still being computed."""
    started = time.perf_counter()
    for _ in range(count):
        loss = step()
    float(loss)
    return (time.perf_counter() - started) / count


def _prepare(step: Callable, budget: float) -> dict[str, Any]:
    """Warm a variant up; how many of its steps make a round."""
    first = _seconds(step, 1)
    for _ in range(CHECKED - 1):
        loss = step()
    loss, seconds = float(loss), min(_seconds(step, 5) for _ in range(3))
    return {"first_s": first, "loss": loss, "count": int(np.clip(budget / seconds, 3, 300))}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    variants: Variants = []
    prepared: list[dict[str, Any]] = []
    stack = contextlib.ExitStack()
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request["do"] == "prepare":
            variants.clear()  # the last cell's arrays and threads go first
            stack.close()
            place = Place(request["device"], request["precision"])
            variants += BUILD[sys.argv[1]](Cell(*request["cell"]), stack, place)
            prepared = [
                {"variant": v.name} | _prepare(v.step, request["budget"]) | {"states": v.states()}
                for v in variants
            ]
            answer = prepared
        else:
            i = request["variant"]
            _seconds(variants[i].step, 3)
            answer = 1e3 * _seconds(variants[i].step, prepared[i]["count"])
        answers.write(json.dumps(answer) + "\n")
    stack.close()


if __name__ == "__main__":
    main()
