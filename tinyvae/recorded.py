"""A training step without Python: its kernel calls, recorded once and run again.

A step on one shape of batch calls the same kernels on the same memory, again and again.  The first
step of a shape runs as usual; the second is recorded (`Program` in tinyvae_kernels), one program
for each shard and one for each thread's share of the update; the third runs both ways, and only if
all losses and gradients agree to the last bit is the recording used from then on.  So whatever a
network does outside the kernels, in NumPy or in Python, is noticed: such a network runs as usual.

The gradient of a large weight, x^T du, is left out of the programs: the update computes a few rows
of it at a time and uses them while they lie in the cache.  In memory such a gradient is found only
if somebody wants it, to clip it by its norm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .batches import Batch, Gather, read
from .devices import Cell, Program, add, only_product, product, run_programs
from .objectives import Terms
from .optim import Adam
from .parallel import Shards
from .tensor import Tensor

Objective = Callable[..., Terms]  # (network, batch, part, step, kl_weight) -> Terms
NEW, UNPROVEN, READY, REFUSED = "new", "unproven", "ready", "refused"
LARGE = 2**16  # numbers of a weight whose gradient is made in the update
TILE = 12  # rows: a multiple of the 6 or 4 that a product makes at once
BLOCK = 2**15  # numbers of a gradient in one go: with the same of p, m and v, 512 kB of float32


class RecordedStep:
    """The gradients and the update of one shape of batch, in memory of their own.

    total: rows of the data set that the batches are taken from.
    state: "new", "unproven" (recorded), "ready" (it gave the right bits) or "refused".
    """

    def __init__(
        self, shards: Shards, optimizer: Adam, objective: Objective, *, total: int | None = None
    ):
        self.shards, self.optimizer, self.objective = shards, optimizer, objective
        self.total = total
        self.state = NEW
        self.parameters = [tensor.data for tensor in optimizer.parameters]

    def fits(self) -> bool:
        """Whether it can be used: nobody has put other arrays in the parameters' place."""
        tensors = self.optimizer.parameters
        same = all(t.data is a for t, a in zip(tensors, self.parameters, strict=True))
        return self.state != REFUSED and same

    def gradients(
        self, source: Batch | Gather, step: int, kl_weight: float, *, summed: bool
    ) -> list[Terms]:
        """The losses of all shards; the gradients end up in the optimizer's parameters.

        summed: over the shards, already now; else by `update`, which costs less.
        """
        if self.state == NEW:
            self._record(source, step, kl_weight)
        else:
            self._take(source, step, kl_weight)
            run_programs(self.programs)
            if summed or self.state == UNPROVEN:
                run_programs(self.rests)
            if self.state == UNPROVEN:
                self._prove(read(source).x, step, kl_weight)
        self.summed = summed
        if summed:
            self._sum()
        for tensor, gradient in zip(self.optimizer.parameters, self.shares[0], strict=True):
            tensor.grad = gradient
        return self.losses

    def update(self, scale: float) -> None:
        """Change the parameters: the optimizer's step, with gradients times scale."""
        self.optimizer.steps += 1
        for cell, number in zip(self.numbers, self.optimizer.numbers(scale), strict=True):
            cell.set(number)
        if self.summed:
            self._run(self.updates, self._update_group)
        else:
            postponed = self.factors if self.state != REFUSED else {}  # as it is now
            self._run(
                self.sums_and_updates, functools.partial(self._sum_and_update_group, postponed)
            )

    # ------------------------------------------------------------------------------------- inside
    def _take(self, source: Batch | Gather, step: int, kl_weight: float) -> None:
        """What changes from step to step."""
        if isinstance(source, Gather):  # the program reads the rows itself
            np.copyto(self.index, source.index)
        else:
            np.copyto(self.x, source.x)
        self.step.set(step)
        self.kl_weight.set(kl_weight)

    def _record(self, source: Batch | Gather, step: int, kl_weight: float) -> None:
        """Compute the gradients and remember how."""
        self.source, x = source, read(source).x
        self.x, self.kl_weight = x.copy(), Cell(x.dtype, kl_weight)
        if isinstance(source, Gather):
            self.index = source.index.copy()
        self.step = Cell(np.uint32, step)  # the program draws its own noise
        self.state = UNPROVEN
        self.rests: list[Program] = []  # what they leave to the update
        self.factors: dict[int, list] = {}  # of these gradients: x^T and du of each shard
        try:
            results = self.shards.scatter(self._record_shard, len(x))
            self.programs, self.losses, self.shares = map(list, zip(*results, strict=True))
            self._postpone()
            for program in (*self.programs, *self.rests):
                self._compile(program)
        except TypeError:  # somebody computes with the weight, and a cell is no number
            self.state, self.programs = REFUSED, []
            self.losses, self.shares = self._as_usual(x, step, kl_weight)
        self.numbers = tuple(Cell(x.dtype) for _ in self.optimizer.numbers(1.0))
        self.sums: list[Program | None] = [None] * len(self.shards.groups)
        self.updates: list[Program | None] = [None] * len(self.shards.groups)
        self.sums_and_updates: list[Program | None] = [None] * len(self.shards.groups)

    def _record_shard(self, network: Any, part: slice) -> tuple[Program, Terms, list]:
        program = Program()
        with program.record():
            if isinstance(self.source, Gather):
                self.source.into(self.x, self.index, part, self.step)
            losses, gradients = self._compute(network, part, self.x, self.step, self.kl_weight)
        return program, losses, gradients

    def _postpone(self) -> None:
        """Leave products that only make a large gradient to the update."""
        self.rests = [Program() for _ in self.programs]
        for i, shares in enumerate(zip(*self.shares, strict=True)):
            if shares[0] is None or shares[0].ndim != 2 or shares[0].size < LARGE:
                continue
            calls = [only_product(*pair) for pair in zip(self.programs, shares, strict=True)]
            found = [call for call in calls if call is not None and _still_there(call)]
            if len(found) == len(shares):
                self.factors[i] = [args[1:3] for _, args in found]
                for program, rest, call in zip(self.programs, self.rests, found, strict=True):
                    program.calls = [other for other in program.calls if other is not call]
                    rest.calls.append(call)

    def _compile(self, program: Program) -> None:
        """Refuse what cannot be made into a native function: the step itself was done."""
        try:
            program.compile()
        except (ImportError, RuntimeError, TypeError):  # no Numba; a kernel without machine code
            self.state = REFUSED

    def _compute(
        self, network: Any, part: slice, x: np.ndarray, step: Any, kl_weight: Any
    ) -> tuple[Terms, list]:
        """A shard's losses, and its gradients, which are taken out of the network."""
        terms = self.objective(network, Batch(x, total=self.total), part, step, kl_weight)
        terms.loss.backward()
        gradients = [tensor.grad for tensor in network.parameters()]
        network.zero_grad()
        return terms, gradients

    def _as_usual(self, x: np.ndarray, step: int, kl_weight: float) -> tuple[list, list]:
        """The losses and the gradients of all shards, without a recording."""
        for network in self.shards.networks:
            network.zero_grad()

        def shard(network: Any, part: slice) -> tuple[Terms, list]:
            return self._compute(network, part, x, step, kl_weight)

        losses, shares = zip(*self.shards.scatter(shard, len(x)), strict=True)
        return list(losses), list(shares)

    def _prove(self, x: np.ndarray, step: int, kl_weight: float) -> None:
        """Compute the same without the recording: all bits must agree."""
        losses, shares = self._as_usual(x, step, kl_weight)
        found, expected = _arrays(self.losses, self.shares), _arrays(losses, shares)
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, expected))  # noqa: B905
        self.state = READY if same else REFUSED
        if not same:
            self.losses, self.shares = losses, shares

    def _sum(self) -> None:
        if len(self.shares) > 1:
            self._run(self.sums, self._sum_group)

    def _sum_group(self, k: int) -> None:
        first, *others = self.shares
        for i in self.shards.groups[k]:
            for other in others:
                add(first[i], other[i], out=first[i])

    def _update_group(self, k: int) -> None:
        for i in self.shards.groups[k]:
            if self.shares[0][i] is not None:
                self.optimizer.update(i, self._numbers_now())

    def _sum_and_update_group(self, postponed: dict[int, list], k: int) -> None:
        for i, factors in postponed.items():
            self._multiply_and_update(i, factors, k)
        for i in self.shards.groups[k]:
            if i not in postponed and self.shares[0][i] is not None:
                self._sum_and_update(i, [share[i] for share in self.shares])

    def _sum_and_update(self, i: int, shares: list, part: Any = ...) -> None:
        """The last share is added by the optimizer itself, in the same pass."""
        first, *others = shares
        last = others.pop() if others else None
        for other in others:
            add(first, other, out=first)
        self.optimizer.update(i, self._numbers_now(), gradient=first, other=last, part=part)

    def _multiply_and_update(self, i: int, factors: list, k: int) -> None:
        """The k-th thread's share of a weight, a few rows at a time.

        All threads work at every weight, for two products of a size can cost very different times:
        a decoder of 50 samples a row has 50 times an encoder's rows.
        """
        weight, count = self.parameters[i], len(self.shards.groups)
        first, last = (
            len(weight) if n == count else len(weight) * n // count // TILE * TILE
            for n in (k, k + 1)
        )
        rows = min(len(weight), max(1, BLOCK // weight.shape[1] // TILE) * TILE)
        blocks = [np.empty((rows, weight.shape[1]), weight.dtype) for _ in factors]
        for start in range(first, last, rows):
            part = slice(start, min(start + rows, last))
            shares = [
                product(a[part], b, block[: part.stop - start])
                for (a, b), block in zip(factors, blocks, strict=True)
            ]
            self._sum_and_update(i, shares, part)

    def _numbers_now(self) -> tuple:
        """Adam's numbers, as cells; plain, as a step has them, if no program reads them."""
        if self.state != REFUSED:
            return self.numbers
        return tuple(cell.memory[0] for cell in self.numbers)

    def _run(self, programs: list[Program | None], work: Callable[[int], None]) -> None:
        """The program of each group of parameters; recorded while it works for the first time."""

        done = [program for program in programs if program is not None]
        if self.state != REFUSED and len(done) == len(programs):
            run_programs(done)
            return

        def run(k: int) -> None:
            if self.state == REFUSED:
                work(k)
                return
            programs[k] = program = Program()
            with program.record():
                work(k)
            self._compile(program)

        self.shards.at_once([functools.partial(run, k) for k in range(len(programs))])


def _still_there(call: tuple) -> bool:
    """Whether the factors of a product are at the end of the step what they were in it."""
    out, a, b = call[1][:3]
    return np.array_equal(product(a, b, np.empty_like(out)), out, equal_nan=True)


def _arrays(losses: list[Terms], shares: list[list]) -> Iterator[Any]:
    for terms, gradients in zip(losses, shares, strict=True):
        found = (terms.nll, terms.kl, terms.elbo, *terms.log.values())
        yield from (a.data if isinstance(a, Tensor) else a for a in found)
        yield from gradients
