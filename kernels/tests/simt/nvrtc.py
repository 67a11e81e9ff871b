"""The kernels' machine code: NVRTC compiles every instance as CuPy would, without a GPU.

registers.json is the table that test_nvrtc.py holds against what it compiles. To write it anew:

    cd kernels/tests && PYTHONPATH=.. python -m simt.nvrtc
"""

from __future__ import annotations

import base64
import ctypes
import functools
import hashlib
import importlib.util
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tinyvae_kernels._cuda import source

from . import build, instances

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
# _cuda.py's own option, then what CuPy 14.2 adds to it (cupy/cuda/compiler.py)
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")
TABLE = Path(__file__).with_name("registers.json")
VERSION = "13.5.37"  # of the compiler that made the table

Resources = dict[str, int]  # registers, stack, spills, shared: bytes but for the first


class Compiled(NamedTuple):
    """The kernels of a file for one architecture."""

    cubin: bytes
    log: str
    symbols: dict[str, str]  # instance -> its name in the cubin

    @property
    def resources(self) -> dict[str, Resources]:
        """Of each instance."""
        found = resources(self.log)
        return {kernel: found[symbol] for kernel, symbol in self.symbols.items()}


def wheel_files(pattern: str) -> list[Path]:
    """Files of NVIDIA's wheels: nvidia/cu13/lib/libnvrtc.so.13 ..."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    return sorted(path for folder in folders or () for path in Path(folder).glob(pattern))


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The library of the wheel nvidia-cuda-nvrtc; RuntimeError if it is not installed."""
    libraries = wheel_files("*/lib/libnvrtc.so.*")
    if not libraries:
        raise RuntimeError(
            f"the CUDA kernels' tests need NVRTC: pip install nvidia-cuda-nvrtc=={VERSION}"
        )
    for builtins in libraries[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))  # NVRTC looks for it by name alone
    return ctypes.CDLL(str(libraries[0]))


def check(status: int) -> None:
    """RuntimeError unless NVRTC says that it went well."""
    if status:
        nvrtc().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(nvrtc().nvrtcGetErrorString(status).decode())


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    """nvrtcGetProgramLog, nvrtcGetCUBIN: a size, then as many bytes."""
    size = ctypes.c_size_t()
    check(getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def compiled(text: str, kernels: Iterable[str], architecture: str) -> Compiled:
    """The instances of a source text; RuntimeError with NVRTC's log if it does not compile."""
    kernels, library, program = list(kernels), nvrtc(), ctypes.c_void_p()
    check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None
        )
    )
    try:
        for kernel in kernels:
            check(library.nvrtcAddNameExpression(program, kernel.encode()))
        options = (*OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise RuntimeError(f"{architecture}: NVRTC refuses the kernels:\n{log}")
        symbols = {kernel: lowered_name(program, kernel) for kernel in kernels}
        return Compiled(_text(program, "CUBIN"), log, symbols)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def lowered_name(program: ctypes.c_void_p, kernel: str) -> str:
    """The name of an instance in the machine code."""
    name = ctypes.c_char_p()
    check(nvrtc().nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
    assert name.value is not None
    return name.value.decode()


def resources(log: str) -> dict[str, Resources]:
    """What ptxas -v says of each function."""
    found: dict[str, Resources] = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = {
            "registers": r"Used (\d+) registers",
            "stack": r"(\d+) bytes stack frame",
            "spills": r"(\d+) bytes spill stores",
            "shared": r"(\d+) bytes smem",
        }
        found[part.split("'")[0]] = {
            name: max(map(int, re.findall(pattern, part)), default=0)
            for name, pattern in numbers.items()
        }
    return found


def kept(file: str, architecture: str) -> Compiled:
    """`compiled`, kept on disk as the shim is, under a hash of everything that goes into it."""
    nvrtc()  # says what to install
    text, kernels = source(file), instances.names(file)
    key = "\0".join([text, *kernels, *OPTIONS, architecture, metadata.version("nvidia-cuda-nvrtc")])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = build.cache() / f"{Path(file).stem}-{architecture}-{digest}.json"
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        return Compiled(base64.b64decode(found.pop("cubin")), **found)
    made = compiled(text, kernels, architecture)
    found = made._asdict() | {"cubin": base64.b64encode(made.cubin).decode()}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # it is whole when it has its name
        (Path(folder) / path.name).write_text(json.dumps(found), "utf-8")
        (Path(folder) / path.name).replace(path)
    return made


def compile_all() -> dict[tuple[str, str], Compiled]:
    """{(file, architecture): its kernels}, two at a time: NVRTC lets go of Python's lock."""
    jobs = [(file, arch) for file in instances.KERNELS for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: kept(*job), jobs), strict=True))


def table(all_compiled: dict[tuple[str, str], Compiled]) -> dict[str, Resources]:
    """{"tinyvae::philox_bits<1> sm_90": its resources}."""
    return {
        f"{kernel} {architecture}": numbers
        for (_, architecture), file in all_compiled.items()
        for kernel, numbers in file.resources.items()
    }


def written(rows: dict[str, Resources]) -> str:
    """JSON with one line for each instance and architecture."""
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def disassembled(cubin: bytes) -> dict[str, str]:
    """{symbol: its machine instructions}, by nvdisasm of the wheel nvidia-cuda-nvdisasm."""
    (program,) = wheel_files("*/bin/nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


if __name__ == "__main__":
    TABLE.write_text(written(table(compile_all())), "utf-8")
