"""A peer of `benchmarks.train_epoch` in its own process: answers each line of JSON with one.

Each trains on the pixels as the files hold them, (N, 784) uint8, in a new order every epoch, and
draws new bits from the grey values of every batch: gather, scale, binarize, step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ._cells import CHANNELS, IMAGE, Cell, Z

Variants = list[tuple[str, Callable[[int], float]]]  # a name, and an epoch: its last loss


def pixels(data_dir: str | None) -> np.ndarray:
    """MNIST's 60,000 training images, (N, 784) uint8; as many of random bytes without a folder."""
    if data_dir is None:
        rng = np.random.default_rng(0)
        return np.where(rng.random((60_000, 784)) < 0.8, 0, rng.integers(0, 256, 784)).astype("u1")
    from tinyvae import data

    return data.load("mnist", data_dir=data_dir, validation=False).train.reshape(-1, 784)


def _tinyvae(cell: Cell, x: np.ndarray, stack: contextlib.ExitStack) -> Variants:
    """As `tinyvae train` runs it, but for the evaluation after each epoch."""
    from tinyvae import likelihoods, optim, schedules, train
    from tinyvae.batches import Rows
    from tinyvae.models import vae
    from tinyvae.ops.noise import Stream

    conv = cell.architecture == "conv"
    shape = IMAGE if conv else (784,)
    network = vae.build(
        cell.architecture, shape, Z, hidden=(cell.hidden,), channels=CHANNELS, activation="relu",
        seed=0, likelihood=likelihoods.Bernoulli(),
    )  # fmt: skip
    optimizer = optim.Adam(network.parameters(), 1e-3)
    settings = train.Settings(
        epochs=1, batch_size=cell.batch, learning_rate=schedules.Constant(1e-3),
        kl_weight=schedules.Constant(1.0), seed=0,
    )  # fmt: skip
    rows = Rows(x, shape, scale=255.0, binarize="dynamic")
    step = stack.enter_context(train.Step(network, optimizer, settings))

    def epoch(number: int) -> float:
        for index in rows.shuffled(cell.batch, epoch=number):
            nll, kl, _ = step(rows.draw(index, stream=Stream.BINARIZE, step=optimizer.steps))
        return float((nll + kl).mean())

    return [("", epoch)]


def _torch(
    cell: Cell, x: np.ndarray, _: contextlib.ExitStack, *, compiled: bool = False
) -> Variants:
    """All pixels in a tensor, indexed by a permutation: faster than a DataLoader of workers."""
    import torch

    from ._torch_vae import network

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    data = torch.from_numpy(x)

    def variant(layout: Any) -> Callable[[int], float]:
        torch.manual_seed(0)
        model = network(cell)
        if cell.architecture == "conv":
            model = model.to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        objective = torch.compile(model) if compiled else model

        def epoch(number: int) -> float:
            for index in torch.randperm(len(data)).split(cell.batch):
                batch = torch.bernoulli(data[index].float().div_(255))
                if cell.architecture == "conv":
                    batch = batch.reshape(-1, 1, 28, 28).to(memory_format=layout)
                optimizer.zero_grad(set_to_none=True)
                loss = objective(batch)
                loss.backward()
                optimizer.step()
            return float(loss.detach())

        return epoch

    if cell.architecture == "mlp":
        return [("", variant(torch.contiguous_format))]
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return [(name, variant(layout)) for name, layout in layouts.items()]


def _jax(cell: Cell, x: np.ndarray, _: contextlib.ExitStack) -> Variants:
    """All pixels on the device; gather and bits inside the one jitted step."""
    import jax
    import jax.numpy as jnp

    from ._jax_vae import training_update

    data = jnp.asarray(x)
    shape = IMAGE if cell.architecture == "conv" else (784,)
    update, carry = training_update(cell)

    def whole(p: Any, state: Any, key: Any, index: Any) -> Any:
        key, bits = jax.random.split(key)
        grey = data[index].astype(jnp.float32) / 255
        batch = jax.random.bernoulli(bits, grey).astype(jnp.float32)
        return update(p, state, batch.reshape(-1, *shape), key)

    compiled = jax.jit(whole, donate_argnums=(0, 1))

    def epoch(number: int) -> float:
        order = np.random.default_rng(number).permutation(len(x))
        for start in range(0, len(x), cell.batch):
            p, state, key, loss = compiled(*carry, order[start : start + cell.batch])
            carry[:] = p, state, key
        return float(loss)

    return [("", epoch)]


BUILD: dict[str, Callable[..., Variants]] = {
    "tinyvae": _tinyvae,
    "torch": _torch,
    "compile": lambda *given: _torch(*given, compiled=True),
    "jax": _jax,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    stack, epochs, number = contextlib.ExitStack(), [], 0
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request["do"] == "prepare":
            stack.close()
            x = pixels(request["data_dir"])[: request["rows"]]
            epochs = BUILD[sys.argv[1]](Cell(*request["cell"]), x, stack)
            answer = [{"variant": name, "loss": epoch(0)} for name, epoch in epochs]  # compiles
        else:
            number += 1
            started = time.perf_counter()
            epochs[request["variant"]][1](number)
            answer = 1e3 * (time.perf_counter() - started)
        answers.write(json.dumps(answer) + "\n")
    stack.close()


if __name__ == "__main__":
    main()
