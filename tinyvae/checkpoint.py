"""Arrays and a description in one safetensors file: written whole or not at all, read with care.

A file holds named arrays and JSON metadata, among it a sha256 of the arrays, so that an altered
file is noticed.  No pickle: a file from a stranger can be opened, and PyTorch and JAX read it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import devices

FORMAT = "tinyvae-1"


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """A file to write that takes `path`'s place when the block ends well, and vanishes if not.

    The temporary file stands in the same folder, and is on the disk before it is renamed: whatever
    kills the program, `path` holds the old content or the new, never half.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600; a saved model is no secret
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, indented, by `replacing`."""
    with replacing(path, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")


def write(path: str | Path, arrays: dict[str, Any], description: dict[str, Any]) -> None:
    """Write arrays, of either device, and a JSON-serialisable description: a safetensors file."""
    from safetensors.numpy import save

    arrays = {n: np.asarray(devices.to_host(a), order="C") for n, a in arrays.items()}
    metadata = {
        "format": FORMAT,
        "description": json.dumps(description),
        "sha256": _digest(arrays, description),
    }
    content = save(arrays, metadata)
    with replacing(path) as file:
        file.write(content)


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a file that `write` made.

    Raises FileNotFoundError, or ValueError that says whether the file is truncated, altered, from
    other software, or from another version of tinyvae.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format", FORMAT) != FORMAT:
                raise ValueError(f"{path} has format {metadata['format']!r}, expected {FORMAT!r}")
            if "format" not in metadata:
                raise ValueError(f"{path} is a safetensors file, but not one that tinyvae wrote")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: truncated, or from other software ({error})"
        ) from None
    try:
        description = json.loads(metadata["description"])
        intact = metadata["sha256"] == _digest(arrays, description)
    except (KeyError, json.JSONDecodeError):
        intact = False
    if not intact:
        raise ValueError(f"{path} was altered after it was written: its checksum does not match")
    return arrays, description


def _digest(arrays: dict[str, np.ndarray], description: dict[str, Any]) -> str:
    """sha256 of the description and of all arrays with names, types and shapes, in name order."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def prefixed(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Put `prefix.` before every name."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def part(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those arrays whose name starts with `prefix.`, without it."""
    start = prefix + "."
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
