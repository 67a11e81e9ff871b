"""A training step on a GPU as one launch: its kernels, captured in a CUDA graph and run again.

What recorded.py is on the CPU.  All that changes from step to step (the batch, the step's number,
the weight of the KL, Adam's numbers) lies in the GPU's memory, at addresses that stay.  The first
step of a shape runs as usual and compiles the kernels; the second is captured; the third runs both
ways, and only if all losses, gradients and parameters agree to the last bit is the graph launched
from then on.  So a network that asks for a value, or computes on the host, runs as usual.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import devices
from .batches import Batch, Gather, read
from .models import Model
from .objectives import Terms
from .optim import Adam
from .recorded import NEW, READY, REFUSED, UNPROVEN, Objective
from .tensor import Tensor

TOLD = ("nll", "kl", "elbo")


class Found(NamedTuple):
    """What a step gives: the losses, and a gradient for each parameter, or None.

    told: nll, kl and elbo in one piece.
    """

    terms: Terms
    gradients: list[Any]
    told: Any

    def total(self) -> Any:
        """The sum of the rows' bounds, float64: finite, or there is nothing to learn from."""
        return _array(self.terms.elbo).sum(dtype=np.float64)

    def arrays(self) -> list[Any]:
        """All of them that are arrays, and the numbers."""
        terms = self.terms
        values = (terms.nll, terms.kl, terms.elbo, *terms.log.values(), *self.gradients)
        return [_array(value) for value in values if value is not None]


class Inputs:
    """What changes from step to step, in the GPU's memory.

    batch: its arrays.  step: a number, uint32.  kl_weight: one of the network's type.  numbers:
    Adam's.  The numbers lie in one piece, so that one copy brings them all.
    """

    def __init__(self, batch: Batch, optimizer: Adam):
        x, y, mask, corrupted = (None if a is None else a.copy() for a in _arrays_of(batch))
        self.batch = Batch(x, y, mask, batch.total, corrupted)
        dtype, count = optimizer.parameters[0].dtype, 1 + len(optimizer.numbers(1.0, 1))
        size = 8 + dtype.itemsize * count
        self.host = np.zeros(size, np.uint8)
        self.device = devices.empty((size,), batch.x, np.uint8)
        self.host_step, self.host_numbers = self.host[:4].view(np.uint32), self.host[8:].view(dtype)
        numbers = self.device[8:].view(dtype)
        self.step, self.kl_weight = self.device[:4].view(np.uint32)[0], numbers[0]
        self.numbers = numbers[1:]

    def take(self, batch: Batch, step: int, kl_weight: float, numbers: tuple) -> None:
        """The values of a step."""
        for own, given in zip(_arrays_of(self.batch), _arrays_of(batch), strict=True):
            if own is not None:
                np.copyto(own, given)
        self.host_step[0], self.host_numbers[0] = step, kl_weight
        self.host_numbers[1:] = numbers
        self.device.set(self.host)


class CapturedStep:
    """The gradients and the update of one shape of batch.

    whole: capture the update too.  It cannot be if the gradients must be looked at before it.
    state: "new", "unproven" (captured), "ready" (it gave the right bits) or "refused".
    """

    def __init__(self, network: Model, optimizer: Adam, objective: Objective, *, whole: bool):
        self.network, self.optimizer, self.objective = network, optimizer, objective
        self.whole = whole
        self.arrays = self._arrays()
        hooked = type(network).after_step is not Model.after_step  # it may look at host state
        mixed = len({tensor.dtype for tensor in optimizer.parameters}) > 1
        self.state = REFUSED if hooked or mixed else NEW

    def fits(self) -> bool:
        """Whether it can be used: nobody has put other arrays in the place of the network's."""
        same = all(a is b for a, b in zip(self._arrays(), self.arrays, strict=True))
        return self.state != REFUSED and same

    def gradients(
        self, source: Batch | Gather, step: int, kl_weight: float, *, summed: bool
    ) -> list[Terms]:
        """The losses, on the CPU; the gradients end up in the optimizer's parameters.

        With `whole` the parameters are changed as well, unless the loss is not finite.
        summed: without a meaning here, where there is one shard.
        """
        batch, numbers = read(source), self.optimizer.numbers(1.0, step + 1)
        if self.state == NEW:
            self.inputs = Inputs(batch, self.optimizer)
        self.inputs.take(batch, step, kl_weight, numbers)
        if self.state == UNPROVEN:
            return self._prove(batch, step, kl_weight, numbers)
        if self.state == NEW:
            self._capture()
        if self.state == REFUSED:
            return self._told(self._gradients(batch, step, kl_weight), updated=False)
        self.graph.launch()
        return self._told(self.found, updated=self.whole)

    def update(self, scale: float) -> None:
        """Change the parameters, unless that was done: the optimizer's step."""
        if self.updated:
            self.optimizer.steps += 1
        else:
            self.optimizer.step(scale=scale)

    # ------------------------------------------------------------------------------------- inside
    def _arrays(self) -> list[Any]:
        return [tensor.data for _, tensor in self.network.named_state()]

    def _capture(self) -> None:
        """Make the graph, or find that it cannot be made."""
        self.graph = devices.graph()
        try:
            with self.graph.apart():
                self._gradients(self.inputs.batch, self.inputs.step, self.inputs.kl_weight)
            with self.graph.capture():
                self.found = self._step()
            self.state = UNPROVEN
        except Exception:  # of CUDA, CuPy or the network's own: as usual it will show, if it is one
            self.network.zero_grad()
            self.state = REFUSED

    def _step(self) -> Found:
        """All that is captured."""
        found = self._gradients(self.inputs.batch, self.inputs.step, self.inputs.kl_weight)
        if self.whole:
            self._update(found, self.inputs.numbers, loss=found.total())
        return found

    def _gradients(self, batch: Batch, step: Any, kl_weight: Any) -> Found:
        """The losses and the gradients, which are taken out of the network."""
        terms = self.objective(self.network, batch, slice(0, len(batch)), step, kl_weight)
        terms.loss.backward()
        gradients = [tensor.grad for tensor in self.optimizer.parameters]
        self.network.zero_grad()
        told = np.concatenate([_array(getattr(terms, name)).reshape(-1) for name in TOLD])
        return Found(terms, gradients, told)

    def _update(self, found: Found, numbers: Any, loss: Any = None) -> None:
        for i, tensor in enumerate(self.optimizer.parameters):
            if found.gradients[i] is not None:
                tensor.grad = found.gradients[i]
                self.optimizer.update(i, numbers, loss=loss)
                tensor.grad = None

    def _prove(self, batch: Batch, step: int, kl_weight: float, numbers: tuple) -> list[Terms]:
        """Do the same without the graph, from the same parameters: all bits must agree."""
        changed = [*self.arrays, *(a for slot in self.optimizer.state.values() for a in slot)]
        before = [array.copy() for array in changed]
        self.graph.launch()
        found = [devices.to_host(array) for array in (*self.found.arrays(), *changed)]
        for array, values in zip(changed, before, strict=True):
            np.copyto(array, values)
        usual = self._gradients(batch, step, kl_weight)
        if self.whole and np.isfinite(float(usual.total())):
            self._update(usual, numbers)
        expected = [devices.to_host(array) for array in (*usual.arrays(), *changed)]
        same = len(found) == len(expected) and all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(found, expected, strict=True)
        )
        self.state = READY if same else REFUSED
        return self._told(usual, updated=self.whole)

    def _told(self, found: Found, *, updated: bool) -> list[Terms]:
        """The losses on the CPU, by one copy, which waits for the GPU."""
        self.updated = updated
        for tensor, gradient in zip(self.optimizer.parameters, found.gradients, strict=True):
            tensor.grad = gradient
        told, start, parts = devices.to_host(found.told), 0, {}
        for name in TOLD:
            array = _array(getattr(found.terms, name))
            part = told[start : start + array.size].reshape(array.shape)
            parts[name] = part.astype(array.dtype, copy=False)
            start += array.size
        return [found.terms._replace(**parts)]


def _arrays_of(batch: Batch) -> tuple:
    return batch.x, batch.y, batch.mask, batch.corrupted


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value
