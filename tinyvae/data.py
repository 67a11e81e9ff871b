"""Data: `load` names a data set or a file and gives its rows for training and testing.

Nothing is scaled here: pixels stay uint8 0..255, floats stay as they are stored. Files are
never unpickled, and are checked before memory is set aside for what they say they hold.

N rows    D features    H W C height, width, channels of an image
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvae._text import one_line, unknown
from tinyvae.sprites import FACTORS, sprites

NAMES = ("digits", "sprites", "mnist", "fashion-mnist")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
IDX_TYPES = {8: ">u1", 9: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    # Not served over https; the checksums below make that safe.
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
MNIST = {  # the four files and what they hold
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
PUBLISHED = {  # bytes and sha256 of the same four as .gz
    "mnist": (
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion-mnist": (
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Rows for training, validation and testing; images are channels-last (N, H, W, C).

    Rows are uint8, float32 or float64; labels (N,) classes or (N, F) factors, if any, with
    label_names of the factors. Without validation that array has no rows.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None
    order: np.ndarray | None = None  # where the rows stood in the source, if they were permuted

    def whole(self) -> np.ndarray:
        """All rows, in the order of the source."""
        rows = np.concatenate([self.train, self.validation, self.test])
        return rows if self.order is None else rows[np.argsort(self.order)]

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows and labels of "train", "validation", "test", or "all" in the order of the source."""
        if split != "all":
            return getattr(self, split), getattr(self, f"{split}_labels")
        parts = self.train_labels, self.validation_labels, self.test_labels
        known = [part for part in parts if part is not None]
        labels = np.concatenate(known) if len(known) == len(parts) else None
        if labels is not None and self.order is not None:
            labels = labels[np.argsort(self.order)]
        return self.whole(), labels

    def __repr__(self) -> str:
        rows = f"{len(self.train)} + {len(self.validation)} + {len(self.test)}"
        return f"<Dataset {self.name}: {rows} rows {self.train.shape[1:]} {self.train.dtype}>"


def load(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    array: str | None = None,
    seed: int = 0,
    validation: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
    download: bool = True,
    missing: bool = False,
) -> Dataset:
    """The data set of that name, or the rows of that file or folder, split in three.

    source: "digits" (8 x 8, 0..1, always the same 1297 + 250 + 250), "sprites" (5000 drawn from
      `seed`), "mnist", "fashion-mnist" (50,000 + 10,000 + 10,000 in the order of the files), or
      a path ("./mnist" if it bears such a name) to an idx, .npy, .npz or folder of images.
    data_dir: folder of the four MNIST files (.gz or not). Without it they are looked for in
      `cache_folder`, and downloaded there when missing, unless `download` is False.
    array: the member of an .npz; one with train, valid(ation) and test is split already.
    seed: of the permutation that splits an array in memory 80/10/10. A memory-mapped one
      (.npy) is split into contiguous ranges, in its order, so that it need not be read.
    validation: False leaves validation empty and gives its rows to train.
    progress: called as progress(bytes so far, bytes in all, file) while downloading.
    missing: NaN is a missing value, and may be there.
    Raises ValueError, or an OSError such as FileNotFoundError, that names the file.
    >>> load("digits")
    <Dataset digits: 1297 + 250 + 250 rows (8, 8, 1) float32>
    """
    known, path = isinstance(source, str) and source in NAMES, Path(source).expanduser()
    if array is not None and (known or path.suffix.lower() != ".npz"):
        raise ValueError(f"array={array!r} names a member of an .npz file; {source} is not one")
    if source == "digits":
        return _digits(validation)
    if source == "sprites":
        x, factors = sprites(seed=seed)
        return _split("sprites", x, len(x) // 10, validation, factors, FACTORS)
    if known:
        return _mnist(source, data_dir, validation, progress, download)
    if str(source) and path.exists():  # Path("") is the current folder
        return _from_path(path, array, seed, validation, missing)
    if isinstance(source, str) and path.name == source and not path.suffix:
        raise ValueError(f"{unknown('data set', source, NAMES)}; a path to a file also works")
    raise FileNotFoundError(f"{path}: no such file or folder")


def _digits(validation):
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digits need scikit-learn: pip install "tinyvae[eval]"') from error
    x, labels = load_digits(return_X_y=True)
    # RandomState: NumPy promises that its stream never changes, so the split never does.
    order = np.random.RandomState(0).permutation(len(x))
    images = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)  # (N, 64) -> (N, 8, 8, 1)
    return _split("digits", images, 250, validation, labels[order], order=order)


def _split(name, x, held, validation, labels=None, label_names=None, order=None) -> Dataset:
    """Contiguous ranges, views of x: train, `held` rows for validation, `held` for testing."""
    last = len(x) - held
    first = last - held if validation else last
    ranges = slice(first), slice(first, last), slice(last, None)
    parts: list[Any] = [None if a is None else a[i] for a in (x, labels) for i in ranges]
    return Dataset(name, *[*parts, label_names, order])


def cache_folder(name: str) -> Path:
    """Where a downloaded data set is kept: the folder of its name in $TINYVAE_DATA, or else
    in $XDG_CACHE_HOME/tinyvae, or else in ~/.cache/tinyvae."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get("TINYVAE_DATA") or os.path.join(cache, "tinyvae")
    return Path(root).expanduser() / name


def _mnist(name, data_dir, validation, progress, download) -> Dataset:
    folder = cache_folder(name) if data_dir is None else Path(data_dir).expanduser()
    arrays = []
    for (file, shape), published in zip(MNIST.items(), PUBLISHED[name], strict=True):
        path = next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
        if path is None:
            if data_dir is not None or not download:
                raise FileNotFoundError(f"{name}: no {file}.gz and no {file} in {folder}")
            path = folder / f"{file}.gz"
            _download(f"{URLS[name]}{file}.gz", path, *published, progress)
        x = read_idx(path)
        if x.shape != shape or x.dtype != np.uint8:  # no checksum: it may be compressed anew
            raise ValueError(f"{path}: holds {x.dtype} {x.shape}, expected uint8 {shape}")
        arrays.append(x[..., None] if x.ndim == 3 else x.astype(np.int64))  # -> (N, H, W, 1)
    x, y, test, test_labels = arrays
    end = len(x) - len(test) if validation else len(x)
    return Dataset(name, x[:end], x[end:], test, y[:end], y[end:], test_labels)


def _download(url, path, size, sha256, progress) -> None:
    """Fetch `url` to `path`, which appears only when it is whole and right."""
    import http.client  # here, because they take a tenth of a second to import
    import urllib.request

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    digest, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, open(part, "xb") as out:
            while done <= size and (chunk := reply.read(1 << 16)):
                done += out.write(chunk)
                digest.update(chunk)
                if progress is not None:
                    progress(min(done, size), size, path.name)
        if done != size:
            came = "more" if done > size else f"only {done}"
            raise OSError(f"expected {size} bytes, {came} came")
        if digest.hexdigest() != sha256:
            raise OSError(f"expected sha256 {sha256}, got {digest.hexdigest()}")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        hint = f"place it in {path.parent} by hand"
        raise OSError(f"cannot download {url}: {one_line(error)}; {hint}") from error
    finally:
        part.unlink(missing_ok=True)


def _from_path(
    path: Path, array: str | None, seed: int, validation: bool, missing: bool
) -> Dataset:
    members = _read(path, array)
    rows = {key: as_rows(x, f"{path}[{key}]" if key else str(path)) for key, x in members.items()}
    x, *others = rows.values()
    for key, other in rows.items():
        came, expected = (f"{a.shape[1:]} {a.dtype}" for a in (other, x))
        if came != expected:
            raise ValueError(f"{path}: rows of {key} are {came}, of train {expected}")
    if others:
        held, test = others
        if not validation:
            x, held = np.concatenate([x, held]), held[:0]
        return Dataset(path.stem, x, held, test)
    if len(x) < 3:
        raise ValueError(f"{path}: a split needs at least 3 rows, got {len(x)}")
    order = None
    if not isinstance(members.get(""), np.memmap):
        # now, while rows still have the numbers of the file
        check_finite(x, str(path), missing=missing)
        order = np.random.default_rng(seed).permutation(len(x))
        x = x[order]
    return _split(path.stem or str(path), x, max(1, len(x) // 10), validation, order=order)


def as_rows(x: np.ndarray, name: str = "X") -> np.ndarray:
    """`x` as (N, D) or (N, H, W, C) of a dtype that models take; copied only to convert it.

    x: (N, D), (N, H, W), which gets a channel, or (N, H, W, C). uint8, float32 and float64
      stay, bool becomes uint8 0/1, other numbers float32 (a memory-mapped array is then read).
    Raises ValueError for other dtypes and shapes.
    """
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name}: dtype is {x.dtype}, expected real numbers")
    if not 2 <= x.ndim <= 4 or 0 in x.shape:
        wanted = "(N, D), (N, H, W) or (N, H, W, C), none of them 0"
        raise ValueError(f"{name}: shape is {x.shape}, expected {wanted}")
    if x.dtype == bool:
        x = x.view(np.uint8)
    native = x.dtype.newbyteorder("=")
    kept = native in (np.uint8, np.float32, np.float64)
    x = np.asarray(x, native if kept else np.float32)  # a memmap becomes a plain view of it
    return x[..., None] if x.ndim == 3 else x  # (N, H, W) -> (N, H, W, 1)


def _read(path: Path, array: str | None) -> dict[str, np.ndarray]:
    """The array of a file or folder under the key "", or members of an .npz by their names."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return {"": _read_folder(path)}
    if suffix not in (".npy", ".npz"):
        if suffix == ".gz" or "idx" in path.name.lower():
            return {"": read_idx(path)}
        kinds = f"idx (.gz too), .npy, .npz, or a folder of images ({' '.join(IMAGES)})"
        raise ValueError(f"{path}: unknown kind of file, expected {kinds}")
    try:
        if suffix == ".npy":
            return {"": np.lib.format.open_memmap(path, mode="r")}
        with zipfile.ZipFile(path) as archive:
            names = _choose_members(archive, array)
            return {n: np.lib.format.read_array(archive.open(f"{n}.npy")) for n in names}
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error


def _choose_members(archive: zipfile.ZipFile, array: str | None) -> list[str]:
    """The one named, the three of a split, or the only one there is."""
    names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
    held = "validation" if "validation" in names else "valid"
    if array is not None:
        if array not in names:
            raise unknown("array", array, names)
        return [array]
    if {"train", held, "test"} <= set(names):
        return ["train", held, "test"]
    if len(names) != 1:
        listed = ", ".join(f"{name} {_member_shape(archive, name)}" for name in names)
        raise ValueError(f"holds {len(names)} arrays, name one by array=: {listed}")
    return names


def _member_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """From the header alone: the archive may be larger than memory."""
    form = np.lib.format
    with archive.open(f"{name}.npy") as file:
        first = form.read_magic(file) == (1, 0)
        return (form.read_array_header_1_0 if first else form.read_array_header_2_0)(file)[0]


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an idx file, the format of MNIST, gzip-compressed or not.

    two zero bytes, type, ndim, ndim sizes of 4 bytes, values; big-endian   source: LeCun, MNIST
    Raises FileNotFoundError, or ValueError if the file is damaged or not idx.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # Deflate never packs more than 1032 to 1: no header makes us allocate more than that.
        limit = os.fstat(raw.fileno()).st_size * (1032 if packed else 1)
        try:
            return _parse_idx(gzip.GzipFile(fileobj=raw) if packed else raw, limit)
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            damaged = "" if isinstance(error, ValueError) else "damaged gzip: "
            raise ValueError(f"{os.fspath(path)}: {damaged}{one_line(error)}") from error


def _parse_idx(file: Any, limit: int) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 8:
        raise ValueError(f"magic number is 0x{magic.hex()}, so it is not an idx file")
    if magic[2] not in IDX_TYPES:
        raise ValueError(f"type 0x{magic[2]:02x} is unknown, expected 08, 09, 0b, 0c, 0d or 0e")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"expected {4 * magic[3]} bytes of sizes, got {len(sizes)}")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = np.dtype(IDX_TYPES[magic[2]])
    expected, limit = math.prod(shape) * dtype.itemsize, limit - 4 - len(sizes)
    if expected == 0:
        raise ValueError(f"is empty, its shape is {shape}")
    if expected > limit:
        raise ValueError(f"expected {expected} bytes for shape {shape}, got at most {limit}")
    x = np.empty(shape, dtype)
    got = file.readinto(x.reshape(-1).view(np.uint8))
    if got < expected:
        raise ValueError(f"expected {expected} bytes for shape {shape}, got {got}")
    if file.read(1):
        raise ValueError(f"expected {expected} bytes for shape {shape}, got more")
    return x.astype(dtype.newbyteorder("="), copy=False)


def _read_folder(folder: Path) -> np.ndarray:
    """The images of a folder by name, (N, H, W, C): C=1 for grey, C=3 for colour.

    Palettes, and so every gif, count as colour; of an animation the first picture is taken;
    transparency is laid over white; subfolders and hidden files are passed over.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.name[0] != ".")
    if not paths:
        raise ValueError(f"{folder}: has no images ({' '.join(IMAGES)})")
    first = _read_image(paths[0])
    images = np.empty((len(paths), *first.shape), np.uint8)
    for row, path in enumerate(paths):
        image = _read_image(path)
        if image.shape != first.shape:
            came, expected = (" x ".join(map(str, x.shape)) for x in (image, first))
            raise ValueError(f"{path} is {came} (H x W x C), but {paths[0]} is {expected}")
        images[row] = image
    return images


def _read_image(path: Path) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('images need pillow: pip install "tinyvae[cli]"') from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode is {image.mode}, expected 8 bits per channel")
            white = Image.new("RGBA", image.size, "white")
            x = np.asarray(Image.alpha_composite(white, image.convert("RGBA")))
            grey = image.mode in ("1", "L", "LA") and image.format != "GIF"
            return x[:, :, : 1 if grey else 3]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error


def check_finite(x: np.ndarray, name: str = "X", *, missing: bool = False) -> None:
    """Raise a ValueError that says where the first NaN or infinity stands.

    missing: NaN is a missing value, and may be there.
    """
    found = first_bad(x, (lambda part: ~np.isinf(part)) if missing else np.isfinite, name)
    if found is not None:
        value, place = found
        what = "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
        raise ValueError(f"{name} has {what} at {place}")


def check_range(x: np.ndarray, low: float, high: float, name: str = "X", hint: str = "") -> None:
    """Raise a ValueError that says where the first value outside [low, high], or NaN, stands."""
    found = first_bad(x, lambda part: (part >= low) & (part <= high), name)
    if found is not None:
        value, place = found
        after = f"; {hint}" if hint else ""
        raise ValueError(f"{name} has {value} at {place}, outside [{low:g}, {high:g}]{after}")


def first_bad(x, good, name):
    """The first value that is not good, and its place in words; reads a few rows at a time."""
    x = np.atleast_1d(x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name}: dtype is {x.dtype}, expected real numbers")
    if good is np.isfinite and x.dtype.kind != "f":
        return None
    step = max(1, (1 << 20) // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        bad = ~good(x[start : start + step])
        if bad.any():
            place = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
            row, rest = start + place[0], place[1:]
            kind = {0: "", 1: ", column {}", 3: ", pixel {}"}.get(len(rest), ", position {}")
            where = kind.format(rest[0] if len(rest) == 1 else rest)
            return x[start:][place].item(), f"row {row}{where}"
    return None
