"""Compiled kernels on disk: one file for each kernel and types, the same for every environment.

Numba's own cache goes by the file that holds a kernel, lies beside it, and numbers its files by an
index.  So it misses changes in functions that a kernel inlines, is gone with a reinstallation, and
of two processes that compile at once the one may get the other's machine code.  Here the folder
is named after the contents of the whole package, in the user's cache folder (NUMBA_CACHE_DIR if
that is set), and a file after all that decides its content: any two processes that write it write
the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, config
from numba.misc.appdirs import AppDirs

HERE = Path(__file__).parent
KEPT = 4  # folders: other versions, in other environments, may be in use


@functools.cache
def state() -> str:
    """The state of the package's sources and of Numba, in 16 letters."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def folder() -> Path | None:
    """Where the machine code lies; None if nothing can be written there."""
    asked = config.CACHE_DIR  # type: ignore[attr-defined]
    root = Path(asked or AppDirs("tinyvae_kernels", appauthor=False).user_cache_dir)
    path = root / state()
    try:
        is_new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
        if is_new:
            _forget_others(root)
    except OSError:
        return None
    return path


def _forget_others(root: Path) -> None:
    """Keep the folders that were written last, and no more."""
    others = sorted(
        (p for p in root.iterdir() if len(p.name) == 16), key=lambda p: p.stat().st_mtime
    )
    for path in others[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


class _Locator(caching._CacheLocator):
    """Where and under which name a function is kept."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:
        path = folder()
        return None if path is None else cls(path)

    def get_cache_path(self) -> str:
        return str(self.path)

    def get_source_stamp(self) -> str:
        return state()

    def get_disambiguator(self) -> str:
        return ""


class _Files:
    """The files of one function: a file for each key."""

    def __init__(self, folder: str, name: str):
        self.folder, self.name = Path(folder), name

    def _path(self, key: Any) -> Path:
        return self.folder / f"{self.name}{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def save(self, key: Any, data: Any) -> None:
        path = self._path(key)
        part = path.with_suffix(f".{secrets.token_hex(8)}.part")
        try:
            part.write_bytes(caching.dumps(data))
            os.replace(part, path)
        except OSError:  # a full disk: the kernel runs all the same
            with contextlib.suppress(OSError):
                part.unlink()

    def load(self, key: Any) -> Any:
        try:
            return pickle.loads(self._path(key).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):  # not there, or cut short
            return None

    def flush(self) -> None:
        for path in self.folder.glob(f"{self.name}*.nbc"):
            path.unlink(missing_ok=True)


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # type: ignore[list-item]  # noqa: RUF012  (Numba's form)


class KernelCache(caching.FunctionCache):
    """What a Numba dispatcher asks for machine code before it compiles."""

    _impl_class = _Implementation

    def __init__(self, py_func: Any):
        super().__init__(py_func)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base)  # type: ignore[assignment]


def enable(dispatcher: Any) -> None:
    """Let a dispatcher keep its machine code on disk, if there is a place for it."""
    if folder() is not None:
        dispatcher._cache = KernelCache(dispatcher.py_func)
