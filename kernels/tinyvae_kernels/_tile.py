"""The heart of every matrix product: one tile of the result, in the registers of the CPU.

    c[i, j] = sum_k a[i, k] b[k, j]          i < height, j < width vectors

For each k a tile reads `width` vectors of a row of b and one number of each of `height` rows of a,
and multiplies each with each: height * width products for height + width loads.  b is read where it
lies, for its rows are contiguous; a too, for its numbers come one by one, and from anywhere: the
element (i, k) lies at a + rows[i] + steps[k].  That serves a matrix, its transpose, and the patches
of images that nobody has put side by side (`convolution.py`).

A BLAS copies a and b into blocks first.  With few rows, as in a shard of a batch, that costs a
tenth and more (EPYC, AVX-512, one thread, (64, 784) times (784, 400): OpenBLAS 98 GFLOP/s, this
115, and registers alone 118).  What a register holds NumPy and Numba cannot say; LLVM can.

Imported at the first Numba call only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from . import _math

I1, I32, I64 = (ir.IntType(bits) for bits in (1, 32, 64))
FLOATS = {types.float32: (ir.FloatType(), 4), types.float64: (ir.DoubleType(), 8)}


def _registers() -> tuple[int, int, int]:
    """Bytes of a vector of this CPU; height and width of the largest tile that its registers hold.

    With 32 registers: 6 x 4 for the tile, 4 for b's row, 1 for a's number; with 16: 4 x 3, 3 and 1.
    """
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 64, 6, 4
    if triple.startswith(("x86", "i386", "i686", "amd64")):
        return (32 if "+avx" in features else 16), 4, 3
    return 16, 6, 4


VECTOR, TALLEST, WIDEST = _registers()
HEIGHTS = tuple(height for height in (6, 4, 2, 1) if height <= TALLEST)
CHEAP_MASKS = VECTOR == 64  # else a vector that is whole gets a function without a mask
Tiles = Callable[..., Any]


@overload(_math.tiles, jit_options={"nogil": True, "error_model": "numpy"})
def _tiles(number, a, rows, N, steps, K, b, down, M, c, out, accumulate):
    """c[i] = sum_k a[i, k] b[k], or c[i] + ..., for i < N and k < K, in rows of M numbers.

    a, b, c: addresses; down: bytes between rows of b; rows, steps, out: addresses of N, K and N
    int64, where the rows of a begin, the numbers in a row, and the rows of c, in bytes.
    """
    tile, itemsize = _tile(number), FLOATS[number][1]
    lanes = VECTOR // itemsize

    def body(number, a, rows, N, steps, K, b, down, M, c, out, accumulate):
        for j in range(0, M, WIDEST * lanes):
            width = min(WIDEST, (M - j + lanes - 1) // lanes)
            last = min(lanes, M - j - (width - 1) * lanes)
            i = 0
            while i < N:
                left = N - i
                height = TALLEST if left >= TALLEST else 4 if left >= 4 else 2 if left >= 2 else 1
                tile(
                    height, width, a, rows + 8 * i, steps, b + j * itemsize, down,
                    c + j * itemsize, out + 8 * i, K, last, accumulate,
                )  # fmt: skip
                i += height

    return body


@overload(_math.call, prefer_literal=False)
def _call(address, number, *arguments):
    kinds = (number, *[types.int64] * len(arguments))

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, number, packed = values
        convention = context.call_conv
        kind = convention.get_function_type(types.none, kinds).as_pointer()
        given = [number, *cgutils.unpack_tuple(builder, packed)]
        convention.call_function(builder, builder.inttoptr(address, kind), types.none, kinds, given)
        return context.get_dummy_value()

    @intrinsic
    def run(typing, address, number, packed):
        return types.void(address, number, packed), generate

    def body(address, number, *arguments):
        run(address, number, arguments)  # type: ignore[call-arg]

    return body


def _tile(dtype: types.Type) -> Tiles:
    """A function for Numba: one tile, of one of HEIGHTS and of `width` vectors.

    a, b, c: addresses; rows, out: addresses of `height` int64, the distances in bytes of the tile's
    rows in a and in c; steps: address of `depth` int64, the distances of a's numbers; down: bytes
    between rows of b; last: how many numbers of the last vector there are; accumulate: not 0 to add
    to c.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        height, width, *others = values
        last = others[-2]
        lanes = I64(VECTOR // FLOATS[dtype][1])
        part = builder.icmp_signed("<", last, lanes) if not CHEAP_MASKS else ir.Constant(I1, 1)
        end = builder.append_basic_block("tile.end")
        choice = builder.switch(
            builder.or_(
                builder.or_(builder.shl(height, I64(8)), builder.shl(width, I64(1))),
                builder.zext(part, I64),
            ),
            end,
        )
        for h, w, p in itertools.product(HEIGHTS, range(1, WIDEST + 1), (False, True)):
            if p or not CHEAP_MASKS:
                block = builder.append_basic_block(f"tile.{h}.{w}")
                choice.add_case(I64(h << 8 | w << 1 | p), block)
                with builder.goto_block(block):
                    builder.call(_function(builder.module, dtype, h, w, p), others)
                    builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing, height, width, a, rows, steps, b, down, c, out, depth, last, accumulate
    ):  # fmt: skip
        return types.void(*[types.int64] * 12), generate

    return tile


class _Vectors:
    """LLVM's words for vectors of one kind, in one function."""

    def __init__(self, module: Any, builder: Any, number: Any, itemsize: int):
        self.module, self.builder, self.number, self.itemsize = module, builder, number, itemsize
        self.lanes = VECTOR // itemsize
        self.type = ir.VectorType(number, self.lanes)
        self.mask = ir.VectorType(I1, self.lanes)
        self.name = f"v{self.lanes}f{8 * itemsize}"
        self.zero = ir.Constant(self.type, None)

    def call(self, name: str, result: Any, *values: Any) -> Any:
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [value.type for value in values])
            function = ir.Function(self.module, kind, name)
        return self.builder.call(function, values)

    def at(self, address: Any, place: Any, kind: Any = None) -> Any:
        """A pointer to what lies so many bytes after an address."""
        return self.builder.inttoptr(
            self.builder.add(address, place), (kind or self.type).as_pointer()
        )

    def spread(self, value: Any) -> Any:
        """One value in all lanes."""
        first = self.builder.insert_element(
            ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined), value, I32(0)
        )
        picks = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, picks)

    def first_lanes(self, count: Any) -> Any:
        """A mask: the first so many lanes."""
        numbers = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(count))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        """Numbers where the mask is set, zeros elsewhere."""
        if mask is None:
            return self.builder.load(pointer, align=self.itemsize)
        return self.call(
            f"llvm.masked.load.{self.name}.p0", self.type, pointer, I32(self.itemsize), mask,
            self.zero,
        )  # fmt: skip

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        if mask is None:
            self.builder.store(value, pointer, align=self.itemsize)
            return
        self.call(f"llvm.masked.store.{self.name}.p0", ir.VoidType(), value, pointer,
                  I32(self.itemsize), mask)  # fmt: skip

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fmuladd.{self.name}", self.type, a, b, c)


def _function(module: Any, dtype: types.Type, height: int, width: int, masked: bool) -> Any:
    """The function in this module that computes one tile of this size; see `_tile`.

    masked: the last vector is not whole.
    """
    number, itemsize = FLOATS[dtype]
    name = f"tinyvae_tile_{itemsize}_{height}_{width}_{masked:d}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 10), name)
    function.linkage = "internal"
    a, rows, steps, b, down, c, out, depth, last, accumulate = function.args
    entry, old, loop, body, end = (
        function.append_basic_block(n) for n in ("entry", "old", "loop", "body", "end")
    )
    builder = ir.IRBuilder(entry)
    vectors = _Vectors(module, builder, number, itemsize)
    masks = [None] * (width - 1) + [vectors.first_lanes(last) if masked else None]
    cells = [(i, j) for i in range(height) for j in range(width)]
    across = [I64(VECTOR * j) for j in range(width)]

    def table(address: Any, i: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(address, I64.as_pointer()), [i]))

    left = [builder.add(a, table(rows, I64(i))) for i in range(height)]
    below = [builder.add(c, table(out, I64(i))) for i in range(height)]
    builder.cbranch(builder.icmp_signed("!=", accumulate, I64(0)), old, loop)
    builder.position_at_end(old)
    before = [vectors.load(vectors.at(below[i], across[j]), masks[j]) for i, j in cells]
    builder.branch(loop)

    builder.position_at_end(loop)
    k, row, *sums = phis = [builder.phi(kind) for kind in [I64, I64, *[vectors.type] * len(cells)]]
    for phi, fresh, added in zip(
        phis, [I64(0), b, *[vectors.zero] * len(cells)], [I64(0), b, *before], strict=True
    ):
        phi.add_incoming(fresh, entry)
        phi.add_incoming(added, old)
    builder.cbranch(builder.icmp_signed("<", k, depth), body, end)

    builder.position_at_end(body)
    step = table(steps, k)
    right = [vectors.load(vectors.at(row, across[j]), masks[j]) for j in range(width)]
    totals = []
    for i in range(height):
        value = builder.load(vectors.at(left[i], step, number), align=itemsize)
        single = vectors.spread(value)
        totals += [vectors.fma(single, right[j], sums[i * width + j]) for j in range(width)]
    for phi, value in zip(
        phis, [builder.add(k, I64(1)), builder.add(row, down), *totals], strict=True
    ):
        phi.add_incoming(value, body)
    builder.branch(loop)

    builder.position_at_end(end)
    for (i, j), value in zip(cells, sums, strict=True):
        vectors.store(value, vectors.at(below[i], across[j]), masks[j])
    builder.ret_void()
    return function


# ------------------------------------------------------------------------------------- transposing
@overload(_math.square)
def _side(a):
    lanes = VECTOR // FLOATS[a.dtype][1]
    return lambda a: lanes


@overload(_math.transpose_square, jit_options={"nogil": True, "error_model": "numpy"})
def _transpose_square(a, out, i, j):
    square, itemsize = _square(a.dtype), FLOATS[a.dtype][1]

    def body(a, out, i, j):
        square(
            a.ctypes.data + i * a.strides[0] + j * itemsize, a.strides[0],
            out.ctypes.data + j * out.strides[0] + i * itemsize, out.strides[0],
        )  # fmt: skip

    return body


def _square(dtype: types.Type) -> Callable:
    """A function for Numba: a square of as many numbers as a vector has, transposed in registers.

    Blocks of half the size change places, then blocks of a quarter in each, and so on.
    """
    number, itemsize = FLOATS[dtype]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, down, target, across = values
        vectors = _Vectors(builder.module, builder, number, itemsize)
        lanes = vectors.lanes
        rows = [vectors.load(vectors.at(source, builder.mul(down, I64(i)))) for i in range(lanes)]
        size = lanes // 2
        while size:
            for i in range(lanes):
                if not i & size:
                    above = [j if not j & size else lanes + j - size for j in range(lanes)]
                    below = [j + size if not j & size else lanes + j for j in range(lanes)]
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, lanes), picks))
                        for picks in (above, below)
                    )
            size //= 2
        for i, row in enumerate(rows):
            vectors.store(row, vectors.at(target, builder.mul(across, I64(i))))
        return context.get_dummy_value()

    @intrinsic
    def square(typing, source, down, target, across):
        return types.void(*[types.int64] * 4), generate

    return square
