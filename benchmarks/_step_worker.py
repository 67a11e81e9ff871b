"""One peer of the training step benchmark, in a process of its own.

    python -m benchmarks._step_worker PEER

Answers the driver's requests, one JSON line each: {"do": "prepare", "cell": ..., "device": ...,
"budget": seconds} builds a cell and warms it up; {"do": "round", "variant": i} times a round.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ._cells import CHANNELS, MOVED, SAMPLES, SIDE, Cell, Z

CHECKED = 10  # steps after which losses are compared: all peers must learn the same thing
Variants = list[tuple[str, Callable]]  # a name, and a function that does a step: its loss


# --------------------------------------------------------------------------- what each peer does
def _tinyvae(cell: Cell, stack: contextlib.ExitStack, device: str) -> Variants:
    """The very step that tinyvae.train runs, on one batch again and again."""
    from tinyvae import devices, likelihoods, models, optim, schedules, spelling, train

    x = cell.data() if cell.architecture == "conv" else cell.data().reshape(cell.batch, -1)
    parts = models.Parts(
        x.shape[1:], Z, likelihoods.Bernoulli(), "conv" if cell.architecture == "conv" else "mlp",
        (cell.hidden,), CHANNELS, rng=np.random.default_rng(0),
    )  # fmt: skip
    kind = f"iwae:{SAMPLES}" if cell.architecture == "iwae" else "vae"
    network = spelling.parse(kind, models.KINDS, "model").build(parts).to(device)
    x = devices.move(x, device)
    optimizer = optim.Adam(network.parameters(), 1e-3)
    settings = train.Settings(
        epochs=1, batch_size=cell.batch, learning_rate=schedules.Constant(1e-3),
        kl_weight=schedules.Constant(1.0), seed=0,
    )  # fmt: skip
    update = train.Step(network, optimizer, settings)
    stack.enter_context(update)

    def step() -> float:
        nll, kl, _ = update(x)
        return float(nll.sum() + kl.sum()) / cell.batch

    return [("", step)]


def _torch(cell: Cell, _: contextlib.ExitStack, device: str, *, compiled: bool = False) -> Variants:
    """Eager or compiled; for images in both memory layouts, of which the faster one counts."""
    import torch

    from ._torch_vae import training_step

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch._dynamo.reset()  # it gives up on a function that was compiled for eight cells
    layouts = [("", False)]
    if cell.architecture == "conv":
        layouts = [("contiguous", False), ("channels_last", True)]
    return [
        (
            name,
            training_step(cell, cell.data(), compiled=compiled, channels_last=last, device=device),
        )
        for name, last in layouts
    ]


def _jax(cell: Cell, _: contextlib.ExitStack, device: str) -> Variants:
    import jax

    from ._jax_vae import training_step

    if (jax.default_backend() == "gpu") != (device == "cuda"):
        raise RuntimeError(f"JAX runs on {jax.default_backend()}, not on {device}")

    return [("", training_step(cell, cell.data()))]


def _sgemm(cell: Cell, _: contextlib.ExitStack, device: str) -> Variants:
    """No peer: the best rate of a large matrix product, NumPy's or ours, whatever the cell."""
    from tinyvae_kernels import product

    xp: Any = np
    if device == "cuda":
        import cupy

        xp = cupy
    a, out = xp.ones((SIDE, SIDE), np.float32), xp.empty((SIDE, SIDE), np.float32)

    def multiply() -> float:
        xp.matmul(a, a, out=out)
        return float(out[0, 0])

    def ours() -> float:
        product(a, a, out)
        return float(out[0, 0])

    return [(xp.__name__, multiply), ("tinyvae", ours)]


def _copy(cell: Cell, _: contextlib.ExitStack, device: str) -> Variants:
    """No peer: how fast memory is read and written, by as many threads as a step has."""
    from concurrent.futures import ThreadPoolExecutor

    threads = int(os.environ["OMP_NUM_THREADS"]) if device == "cpu" else 1
    xp: Any = np
    if device == "cuda":
        import cupy

        xp = cupy
    source, out = xp.ones(MOVED, np.float32), xp.ones(MOVED, np.float32)
    pool, cuts = ThreadPoolExecutor(threads), np.linspace(0, MOVED, threads + 1, dtype=int)

    def part(k: int) -> None:
        xp.copyto(out[cuts[k] : cuts[k + 1]], source[cuts[k] : cuts[k + 1]])

    def step() -> float:
        list(pool.map(part, range(threads)))
        return float(out[0])

    return [("", step)]


BUILD: dict[str, Callable[[Cell, contextlib.ExitStack, str], Variants]] = {
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
            variants += BUILD[sys.argv[1]](Cell(*request["cell"]), stack, request["device"])
            prepared = [
                {"variant": name} | _prepare(step, request["budget"]) for name, step in variants
            ]
            answer = prepared
        else:
            i = request["variant"]
            _seconds(variants[i][1], 3)
            answer = 1e3 * _seconds(variants[i][1], prepared[i]["count"])
        answers.write(json.dumps(answer) + "\n")
    stack.close()


if __name__ == "__main__":
    main()
