"""What NVRTC makes of every kernel, for every architecture, with CuPy's flags; no GPU is needed.

A failure of the table is no fault by itself: somebody must look at the change. Then write it anew:
    cd kernels/tests && PYTHONPATH=.. python -m simt.nvrtc
"""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest

from simt import instances, nvrtc
from tinyvae_kernels._cuda import source

# kernels that have nothing to load, or store, 16 bytes at a time
NO_WIDE_LOADS = {"philox_bits", "philox_uniform", "philox_normal"}
NO_WIDE_STORES = {
    "gaussian_kl_forward",
    "gaussian_kl_between_forward",
    "gaussian_log_ratio_forward",
}


@pytest.fixture(scope="module")
def all_compiled():
    return nvrtc.compile_all()


def test_registers_are_those_of_the_table(all_compiled):
    installed = importlib.metadata.version("nvidia-cuda-nvrtc")
    assert installed == nvrtc.VERSION, "the table holds for another compiler"
    found, kept = nvrtc.table(all_compiled), json.loads(nvrtc.TABLE.read_text("utf-8"))
    changed = [
        f"{name}: was {kept.get(name)}, is {found.get(name)}"
        for name in sorted(found.keys() | kept.keys())
        if found.get(name) != kept.get(name)
    ]
    assert not changed, "\n".join(
        [f"look at the change, then:{__doc__.splitlines()[-1]}", *changed]
    )


def test_nothing_is_spilled(all_compiled):
    """A stack frame or a spill is memory traffic that the source does not show."""
    table = nvrtc.table(all_compiled)
    assert {name: row for name, row in table.items() if row["stack"] or row["spills"]} == {}


def test_a_source_that_does_not_compile_shows_the_log():
    text = source("total.cu").replace("block_sum(sum)", "block_sun(sum)")
    with pytest.raises(RuntimeError, match=r"sm_90: NVRTC refuses(.*\n)*.*block_sun"):
        nvrtc.compiled(text, instances.names("total.cu"), "sm_90")


def test_an_instance_that_does_not_exist_is_an_error():
    with pytest.raises(RuntimeError, match="tinyvae::totals"):
        nvrtc.compiled(source("total.cu"), ["tinyvae::totals<float>"], "sm_90")


def test_spills_and_shared_memory_are_read_from_the_log():
    """The reader is checked: a kernel with everything that the others must not have."""
    text = """
    extern "C" __global__ void __launch_bounds__(1024, 2) heavy(float* x, int n) {
        __shared__ float kept[100];
        float local[64];
        for (int i = 0; i < 64; ++i) local[i] = x[i * n + threadIdx.x];
        kept[threadIdx.x] = local[n];
        __syncthreads();
        for (int i = 0; i < 64; ++i) x[i * n] = local[i] * local[(i + n) % 64] + kept[i];
    }"""
    row = nvrtc.compiled(text, ["heavy"], "sm_90").resources["heavy"]
    assert row["shared"] >= 400
    assert row["stack"] >= 256
    assert 0 < row["registers"] <= 32


@pytest.mark.parametrize("file", instances.KERNELS)
def test_streaming_kernels_move_16_bytes_at_a_time(file, all_compiled):
    if not nvrtc.wheel_files("*/bin/nvdisasm"):
        pytest.skip(f"needs nvdisasm: pip install nvidia-cuda-nvdisasm=={nvrtc.VERSION}")
    module = all_compiled[file, "sm_90"]
    code = nvrtc.disassembled(module.cubin)
    for kernel, table in instances.KERNELS[file].items():
        for arguments in table:
            if instances.bytes_at_once(arguments) < instances.VECTOR:
                continue
            instance = f"tinyvae::{kernel}<{arguments}>"
            found = set(re.findall(r"(?:LDG|STG)\.E\.128", code[module.symbols[instance]]))
            wanted = ("LDG", NO_WIDE_LOADS), ("STG", NO_WIDE_STORES)
            assert found == {f"{i}.E.128" for i, none in wanted if kernel not in none}, instance
