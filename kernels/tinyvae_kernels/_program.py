"""Kernel calls, recorded once and run again as one native function: no Python in between.

A training step on one shape calls the same kernels on the same memory in the same order, every
time.  `Program` remembers these calls while a step runs, and makes one function out of them: a list
of calls with constant arguments, which LLVM compiles in milliseconds, for the kernels themselves
are compiled already.  That function runs without the interpreter and without its lock, so that the
threads of a step do not wait for each other.  What changes from step to step (a batch, noise, a
learning rate) must lie in the memory that the kernels read.

A GPU has the same thing under the name of CUDA graph.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import _threads
from ._cuda import is_device_array
from ._llvm import machine_code

Call = tuple[Any, tuple]  # a kernel, with `native(args) -> (address, [(LLVM type, value)])`
recorder: contextvars.ContextVar[Program | None] = contextvars.ContextVar("recorder", default=None)


class Cell:
    """A number that a program reads anew at every run, where a plain number would be a constant.

    Given to a kernel in place of a number while a program records.
    """

    def __init__(self, dtype: Any, value: float = 0.0):
        self.memory = np.array([value], dtype)

    def set(self, value: float) -> None:
        """The number from now on."""
        self.memory[0] = value


def varies(value: Any) -> bool:
    """Whether a number is read anew at every run: a Cell, or one that lies in a GPU's memory."""
    return type(value) is Cell or is_device_array(value)


def scalar(value: Any, number: Any) -> Any:
    """A number in a kernel's own type; one that varies, which has its type, as it is."""
    return value if varies(value) else number(value)


class Program:
    """Calls of kernels in the order in which they were made; holds their arrays alive."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.scratch: dict[Any, np.ndarray] = {}  # see arena.py
        self._run: Any = None

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Inside the block, in this thread, kernels run and are remembered."""
        token = recorder.set(self)
        try:
            yield
        finally:
            recorder.reset(token)

    def compile(self) -> None:
        """Make the native function; RuntimeError if a kernel has no address."""
        self._engine, self.address = _compiled(self.calls)
        self._run = ctypes.CFUNCTYPE(ctypes.c_int32)(self.address)  # ctypes lets go of the GIL

    def __call__(self) -> None:
        """All calls again, on the same memory."""
        self._check(self._run())

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"kernel {self.calls[status - 1][0].__name__} failed")


def run_programs(programs: Sequence[Program]) -> None:
    """Run compiled programs, each in a thread of its own; the first error reaches the caller.

    As many threads as the programs, whatever `threads` says: that is of a kernel's.
    """
    team = _threads.team() if len(programs) > 1 else None
    if team is None:
        _threads.in_pool(lambda k: programs[k](), len(programs))
        return
    for program, status in zip(programs, team.programs([p.address for p in programs]), strict=True):
        program._check(status)


# ------------------------------------------------------------------------------- machine code
def flattened(value: Any) -> list[tuple[str, Any]]:
    """An argument as Numba passes it to machine code: LLVM types and constants.

    An array is seven numbers and more: owner (two, 0: borrowed), size, itemsize, address, and its
    shape and strides.
    """
    if isinstance(value, np.ndarray):
        numbers = [value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides]
        return [("ptr", 0), ("ptr", 0), *(("i64", n) for n in numbers[:2]), ("ptr", numbers[2]),
                *(("i64", n) for n in numbers[3:])]  # fmt: skip
    if value is None:  # to Numba a pointer that nobody looks at
        return [("ptr", 0)]
    if isinstance(value, Cell):
        [(kind, _)] = flattened(value.memory[0])
        return [(f"load {kind}", value.memory.ctypes.data)]
    if isinstance(value, tuple):
        return [part for item in value for part in flattened(item)]
    if isinstance(value, (np.float32, np.float64)):
        return [("float" if value.dtype == np.float32 else "double", value)]
    if isinstance(value, np.integer):
        return [(f"i{8 * value.itemsize}", int(value))]
    if isinstance(value, int):
        return [("i64", value)]
    raise TypeError(f"a kernel in a program cannot take a {type(value).__name__}")


def _text(kind: str, value: Any) -> str:
    """A constant in LLVM's language; a float by its bits as a double."""
    if kind == "ptr":
        return f"ptr inttoptr (i64 {value} to ptr)" if value else "ptr null"
    if kind in ("float", "double"):
        return f"{kind} 0x{np.float64(value).view(np.uint64):016X}"
    return f"{kind} {value}"


def _compiled(calls: list[Call]) -> tuple[Any, int]:
    """A function that makes the calls; it returns 0, or the number of the call that failed."""
    lines = ["define i32 @program() {", "entry:", "  %ret = alloca [64 x i8], align 16",
             "  %error = alloca ptr, align 8"]  # fmt: skip
    for number, (kernel, args) in enumerate(calls, 1):
        address, constants = kernel.native(args)
        given = ["ptr %ret", "ptr %error"]
        for place, (kind, value) in enumerate(constants):
            if kind.startswith("load "):
                kind = kind.removeprefix("load ")
                name = f"%cell{number}.{place}"
                lines.append(f"  {name} = load {kind}, ptr inttoptr (i64 {value} to ptr)")
                given.append(f"{kind} {name}")
            else:
                given.append(_text(kind, value))
        callee = f"inttoptr (i64 {address} to ptr)"
        lines += [
            f"  %status{number} = call i32 {callee}({', '.join(given)})",
            # Numba's codes: 0 returned a value, -2 returned None; all others are exceptions
            f"  %some{number} = icmp ne i32 %status{number}, 0",
            f"  %none{number} = icmp ne i32 %status{number}, -2",
            f"  %bad{number} = and i1 %some{number}, %none{number}",
            f"  br i1 %bad{number}, label %failed{number}, label %next{number}",
            f"failed{number}:", f"  ret i32 {number}", f"next{number}:",
        ]  # fmt: skip
    engine = machine_code("\n".join([*lines, "  ret i32 0", "}"]))
    return engine, engine.get_function_address("program")
