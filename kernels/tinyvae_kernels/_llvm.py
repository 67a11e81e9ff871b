"""LLVM's language made into machine code, by the LLVM that Numba brings."""

from __future__ import annotations

import functools
from typing import Any


def machine_code(text: str) -> Any:
    """LLVM's language, compiled as it stands; the code lives as long as what is returned."""
    from llvmlite import binding as llvm

    _initialize()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    return engine


@functools.cache
def _initialize() -> None:
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
