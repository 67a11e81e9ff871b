"""data.py: every source, its split, and the text of every error."""

from __future__ import annotations

import ast
import doctest
import functools
import gzip
import hashlib
import socket
import struct
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinyvae import _text, data, sprites
from tinyvae.data import Dataset, as_rows, cache_folder, check_finite, check_range, load, read_idx

SHARED = Path(__file__).parents[2] / "shared" / "data"
IDX_CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(x: np.ndarray) -> bytes:
    header = bytes([0, 0, IDX_CODES[x.dtype.str[1:]], x.ndim])
    sizes = struct.pack(f">{x.ndim}I", *x.shape)
    return header + sizes + x.astype(x.dtype.newbyteorder(">")).tobytes()


def rows_of(dataset: Dataset) -> np.ndarray:
    return np.concatenate([dataset.train, dataset.validation, dataset.test])


def fails(message, source, error=ValueError, **options):
    with pytest.raises(error, match=message):
        load(source, **options)


def lengths(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.validation), len(dataset.test)


def test_digits_split_is_fixed():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    digits = load("digits")
    assert lengths(digits) == (1297, 250, 250)
    assert digits.train.dtype == np.float32
    assert digits.train.shape[1:] == (8, 8, 1)
    assert digits.train.min() == 0
    assert digits.train.max() == 1
    labels = np.concatenate([digits.train_labels, digits.validation_labels, digits.test_labels])
    order = np.random.RandomState(0).permutation(1797)
    x, y = load_digits(return_X_y=True)
    np.testing.assert_array_equal(labels, y[order])
    np.testing.assert_array_equal(rows_of(digits).reshape(-1, 64) * 16, x[order])
    np.testing.assert_array_equal(load("digits", seed=5).test, digits.test)
    merged = load("digits", validation=False)
    assert lengths(merged) == (1547, 0, 250)
    np.testing.assert_array_equal(rows_of(merged), rows_of(digits))


def test_digits_without_sklearn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    fails(r'scikit-learn: pip install "tinyvae\[eval\]"', "digits", error=ImportError)


def test_sprites_are_split_and_follow_the_seed(monkeypatch):
    monkeypatch.setattr(data, "sprites", lambda seed: sprites.sprites(50, seed=seed))
    one, two = load("sprites"), load("sprites", seed=1)
    assert lengths(one) == (40, 5, 5)
    assert one.train.shape[1:] == (64, 64, 1)
    assert one.train.dtype == np.uint8
    assert one.label_names == ("shape", "scale", "orientation", "x", "y")
    np.testing.assert_array_equal(sprites.draw(one.test_labels), one.test)
    assert not np.array_equal(one.train_labels, two.train_labels)
    assert lengths(load("sprites", validation=False)) == (45, 0, 5)


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    """A server folder with a small stand-in for MNIST; an empty cache."""
    rng, server = np.random.default_rng(0), tmp_path / "server"
    server.mkdir()
    shapes = dict(zip(data.MNIST, [(12, 2, 2), (12,), (3, 2, 2), (3,)], strict=True))
    published = []
    for file, shape in shapes.items():
        packed = gzip.compress(idx_bytes(rng.integers(0, 10, shape, np.uint8)), mtime=0)
        (server / f"{file}.gz").write_bytes(packed)
        published.append((len(packed), hashlib.sha256(packed).hexdigest()))
    monkeypatch.setattr(data, "MNIST", shapes)
    monkeypatch.setattr(data, "PUBLISHED", {"mnist": tuple(published)})
    monkeypatch.setattr(data, "URLS", {"mnist": server.as_uri() + "/"})
    monkeypatch.setenv("TINYVAE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return server


def test_mnist_from_data_dir(tiny_mnist):
    mnist = load("mnist", data_dir=tiny_mnist)
    assert lengths(mnist) == (9, 3, 3)
    images = read_idx(tiny_mnist / "train-images-idx3-ubyte.gz")
    labels = read_idx(tiny_mnist / "train-labels-idx1-ubyte.gz")
    np.testing.assert_array_equal(np.concatenate([mnist.train, mnist.validation])[..., 0], images)
    np.testing.assert_array_equal(mnist.validation_labels, labels[9:])
    assert mnist.train_labels.dtype == np.int64
    assert mnist.train.dtype == np.uint8
    merged = load("mnist", data_dir=str(tiny_mnist), validation=False)
    assert lengths(merged) == (12, 0, 3)
    assert merged.validation.shape == (0, 2, 2, 1)
    assert len(merged.train_labels) == 12
    assert len(merged.validation_labels) == 0


def test_mnist_unpacked_or_compressed_anew(tiny_mnist):
    before = load("mnist", data_dir=tiny_mnist)
    for packed in sorted(tiny_mnist.glob("*.gz"))[:2]:
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    for packed in tiny_mnist.glob("*.gz"):
        packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), 1, mtime=1))
    after = load("mnist", data_dir=tiny_mnist)
    np.testing.assert_array_equal(rows_of(before), rows_of(after))


def test_mnist_file_missing_in_data_dir(tiny_mnist):
    (tiny_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    message = r"mnist: no t10k-labels-idx1-ubyte\.gz .*server"
    fails(message, "mnist", FileNotFoundError, data_dir=tiny_mnist)


def test_mnist_file_of_the_wrong_shape(tiny_mnist):
    path = tiny_mnist / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(4, np.uint8))))
    fails(r"ubyte\.gz: holds uint8 \(4,\), expected uint8 \(3,\)", "mnist", data_dir=tiny_mnist)
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(3, np.float32))))
    fails(r"holds float32 \(3,\), expected uint8 \(3,\)", "mnist", data_dir=tiny_mnist)


def test_mnist_is_downloaded_once(tiny_mnist, monkeypatch):
    calls = []
    mnist = load("mnist", progress=lambda *call: calls.append(call))
    cached = sorted(path.name for path in cache_folder("mnist").iterdir())
    assert cached == sorted(f"{file}.gz" for file in data.MNIST)
    assert [name for *_, name in calls] == [f"{file}.gz" for file in data.MNIST]
    assert all(done == total > 0 for done, total, _ in calls)
    np.testing.assert_array_equal(rows_of(mnist), rows_of(load("mnist", data_dir=tiny_mnist)))
    monkeypatch.setattr(data, "URLS", {})
    load("mnist")


def test_no_download_when_told(tiny_mnist):
    message = r"mnist: no train-images.* in .*cache.mnist"
    fails(message, "mnist", FileNotFoundError, download=False)
    assert not cache_folder("mnist").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-3], r"expected \d+ bytes, only \d+ came"),
        (lambda packed: packed + b"xyz", r"expected \d+ bytes, more came"),
        (lambda packed: packed[:-1] + b"x", r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"),
    ],
)
def test_wrong_download_leaves_nothing(tiny_mnist, change, message):
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    fails(f"^cannot download file:.*: {message}; place it in .*mnist by hand$", "mnist", OSError)
    assert list(cache_folder("mnist").iterdir()) == []


def serve(reply: bytes) -> tuple[str, threading.Thread]:
    """A server for one request, which it answers so and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/", thread


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", "only 4 came|IncompleteRead"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        (b"garbage\r\n\r\n", "garbage"),
        (b"", ""),
    ],
)
def test_broken_connection_leaves_nothing(tiny_mnist, monkeypatch, reply, message):
    url, thread = serve(reply)
    monkeypatch.setattr(data, "URLS", {"mnist": url})
    fails(f"^cannot download http://.*({message}).*; place it in .* by hand$", "mnist", OSError)
    thread.join()
    assert list(cache_folder("mnist").iterdir()) == []


def test_interrupted_download_leaves_nothing(tiny_mnist):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load("mnist", progress=interrupt)
    assert list(cache_folder("mnist").iterdir()) == []


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("TINYVAE_DATA", "there")
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    assert cache_folder("mnist") == Path("there/mnist")
    monkeypatch.delenv("TINYVAE_DATA")
    assert cache_folder("mnist") == Path("xdg/tinyvae/mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("mnist") == Path.home() / ".cache/tinyvae/mnist"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{name}")
    for file, (size, sha256) in zip(data.MNIST, data.PUBLISHED[name], strict=True):
        packed = (folder / f"{file}.gz").read_bytes()
        assert (len(packed), hashlib.sha256(packed).hexdigest()) == (size, sha256)
    real = load(name, data_dir=folder)
    assert lengths(real) == (50000, 10000, 10000)
    assert real.train.shape[1:] == (28, 28, 1)
    assert real.train.dtype == np.uint8
    per_class = {
        "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "fashion-mnist": [6000] * 10,
    }
    labels = np.concatenate([real.train_labels, real.validation_labels])
    assert np.bincount(labels).tolist() == per_class[name]
    mean = {"mnist": 33.791, "fashion-mnist": 73.147}[name]
    assert abs(real.test.mean() - mean) < 1e-3


@pytest.mark.parametrize("code", IDX_CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_types(tmp_path, code, packed):
    x = np.arange(1, 25).reshape(2, 3, 4).astype(code)
    path, content = tmp_path / "x.idx", idx_bytes(x)
    path.write_bytes(gzip.compress(content) if packed else content)
    out = read_idx(path)
    assert out.dtype == x.dtype
    assert out.dtype.isnative
    assert out.flags.writeable
    np.testing.assert_array_equal(out, x)


IDX = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
zipped = functools.partial(gzip.compress, mtime=0)  # else the time of day is in the bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic number is 0x, so it is not an idx file"),
        (b"\x89PNG....", "magic number is 0x89504e47, so it is not an idx file"),
        (b"\0\0\x08\0", "magic number is 0x00000800, so it is not"),
        (b"\0\0\x07\x01\0\0\0\x01a", "type 0x07 is unknown, expected 08, 09, 0b, 0c, 0d or 0e"),
        (IDX[:9], "expected 12 bytes of sizes, got 5"),
        (IDX[:-5], r"expected 24 bytes for shape \(2, 3, 4\), got at most 19"),
        (IDX + b"x", r"expected 24 bytes for shape \(2, 3, 4\), got more"),
        (IDX[:4] + b"\0" * 12, r"is empty, its shape is \(0, 0, 0\)"),
        (IDX[:4] + b"\xff" * 12, r"expected \d{29} bytes .* got at most 0"),
        (zipped(IDX[:-5]), r"expected 24 bytes for shape \(2, 3, 4\), got 19"),
        (zipped(IDX + b"x"), r"expected 24 bytes for shape \(2, 3, 4\), got more"),
        (zipped(IDX[:4] + b"\xff" * 12), r"expected \d{29} bytes .* got at most \d{5}$"),
        (zipped(IDX)[:-9], "damaged gzip: Compressed file ended"),
        (zipped(IDX)[:-8] + b"\1" * 8, "damaged gzip: CRC check failed"),
        (zipped(IDX)[:10] + b"\xff" * 20, "damaged gzip: "),
        (zipped(IDX) + b"junk", "damaged gzip: Not a gzipped file"),
    ],
)
def test_idx_errors(tmp_path, content, message):
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*bad\.gz: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_idx(tmp_path / "none")


def save(tmp_path, x, name="x.npy"):
    np.save(tmp_path / name, x)
    return tmp_path / name


def test_npz_is_permuted_by_the_seed(tmp_path):
    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "x.npz", x=x)
    one, two = load(tmp_path / "x.npz", seed=0), load(str(tmp_path / "x.npz"), seed=1)
    assert one.name == "x"
    assert lengths(one) == (16, 2, 2)
    assert one.train.dtype == np.float64
    np.testing.assert_array_equal(np.sort(rows_of(one), axis=0), x)
    np.testing.assert_array_equal(rows_of(one), rows_of(load(tmp_path / "x.npz")))
    assert not np.array_equal(rows_of(one), rows_of(two))
    merged = load(tmp_path / "x.npz", validation=False)
    assert lengths(merged) == (18, 0, 2)
    assert merged.validation.shape == (0, 2)
    np.testing.assert_array_equal(merged.test, one.test)


def test_npy_stays_on_disk(tmp_path):
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(64, 1 << 20))  # sparse
    tracemalloc.start()
    large = load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    check_finite(large.train)
    check_range(large.train, 0, 255)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert lengths(large) == (52, 6, 6)
    assert not large.train.flags.writeable


def test_npy_ranges_are_contiguous(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(rows_of(load(save(tmp_path, x), seed=3)), x)
    fortran = save(tmp_path, np.asfortranarray(x), "f.npy")
    np.testing.assert_array_equal(rows_of(load(fortran)), x)


def test_three_rows_are_enough(tmp_path):
    assert lengths(load(save(tmp_path, np.ones((3, 2))))) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"x\.npy: a split needs at least 3 rows, got 2"):
        load(save(tmp_path, np.ones((2, 2))))


@pytest.mark.parametrize("held", ["valid", "validation"])
def test_npz_already_split(tmp_path, held):
    parts = {"test": np.ones((1, 4)), held: np.ones((2, 4)), "train": np.ones((3, 4))}
    np.savez_compressed(tmp_path / "x.npz", **parts, other=np.ones(2))
    assert lengths(load(tmp_path / "x.npz")) == (3, 2, 1)
    merged = load(tmp_path / "x.npz", validation=False)
    assert lengths(merged) == (5, 0, 1)
    assert merged.validation.shape == (0, 4)
    assert lengths(load(tmp_path / "x.npz", array="train")) == (1, 1, 1)


def test_npz_errors(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, X=np.ones((5, 3)), y=np.ones(5), o=np.array([{}], object))
    listed = r"X \(5, 3\), y \(5,\), o \(1,\)"
    fails(rf"x\.npz: holds 3 arrays, name one by array=: {listed}", path)
    fails(r"x\.npz: unknown array 'x': did you mean 'X'\? \(X, y, o", path, array="x")
    fails(r"x\.npz\[y\]: shape is \(5,\), expected \(N, D\), ", path, array="y")
    fails(r"x\.npz: Object arrays cannot be loaded", path, array="o")
    np.savez(path, train=np.ones((3, 4)), valid=np.ones((3, 5)), test=np.ones((3, 4)))
    fails(r"rows of valid are \(5,\) float64, of train \(4,\) float64", path)
    path.write_bytes(path.read_bytes()[:100])
    fails(r"x\.npz: File is not a zip file", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"none")
    fails(r"x\.npz: .*magic string", path)


def test_npy_errors(tmp_path):
    with pytest.raises(ValueError, match=r"x\.npy: .*Python objects"):
        load(save(tmp_path, np.array([[{}]], object)))
    path = save(tmp_path, np.ones((5, 3)))
    path.write_bytes(path.read_bytes()[:-1])
    fails(r"x\.npy: mmap length", path)
    path.write_bytes(b"a, b, c\n1, 2, 3\n")
    fails(r"x\.npy: the magic string is not correct", path)
    path.write_bytes(b"")
    fails(r"x\.npy: EOF", path)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([["a"]]), "x: dtype is <U1, expected real numbers"),
        (np.array([[1j]]), "x: dtype is complex128, expected real numbers"),
        (np.array([[None]]), "x: dtype is object, expected real numbers"),
        (np.zeros(3), r"x: shape is \(3,\), expected \(N, D\), \(N, H, W\) or \(N, H, W, C\)"),
        (np.zeros((3, 0)), r"x: shape is \(3, 0\), expected .* none of them 0"),
        (np.zeros((1, 1, 1, 1, 1)), r"x: shape is \(1, 1, 1, 1, 1\), expected"),
    ],
)
def test_as_rows_errors(x, message):
    with pytest.raises(ValueError, match=message):
        as_rows(x, "x")


def test_as_rows():
    for kept in ("u1", "f4", "f8"):
        x = np.ones((2, 3), kept)
        assert np.shares_memory(as_rows(x), x)
    assert as_rows(np.ones((2, 3, 4), np.uint8)).shape == (2, 3, 4, 1)
    assert as_rows(np.ones((2, 3, 4, 5), np.uint8)).shape == (2, 3, 4, 5)
    for dtype, expected in [("i8", "f4"), ("u2", "f4"), ("f2", "f4"), (">f8", "f8"), ("?", "u1")]:
        out = as_rows(np.array([[0, 1]]).astype(dtype))
        assert out.dtype == expected
        assert out.dtype.isnative
        np.testing.assert_array_equal(out, [[0, 1]])


def save_images(folder, **images):
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(exist_ok=True)
    for name, x in images.items():
        image.fromarray(x).save(folder / name.replace("_", "."))
    return folder


def test_folder_of_images(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
    folder = save_images(tmp_path / "grey", b_png=grey[1], a_bmp=grey[0], c_PNG=grey[2])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    one = load(folder)
    assert one.name == "grey"
    assert lengths(one) == (1, 1, 1)
    assert one.train.shape == (1, 5, 6, 1)
    order = np.random.default_rng(0).permutation(3)
    np.testing.assert_array_equal(rows_of(one)[..., 0], grey[:3][order])


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", "png", 1),
        ("L", "bmp", 1),
        ("LA", "png", 1),
        ("P", "png", 3),
        ("P", "gif", 3),
        ("L", "gif", 3),
        ("RGB", "webp", 3),
        ("RGB", "jpeg", 3),
        ("CMYK", "jpg", 3),
    ],
)
def test_kinds_of_images(tmp_path, mode, suffix, channels):
    colour = "red" if mode not in ("1", "L", "LA") else "white"
    image = pytest.importorskip("PIL.Image").new("RGB", (6, 5), colour)
    for row in range(3):
        image.convert(mode).save(tmp_path / f"{row}.{suffix}")
    rows = rows_of(load(tmp_path)).astype(float)
    assert rows.shape == (3, 5, 6, channels)
    assert np.abs(rows - ([255, 0, 0] if colour == "red" else 255)).max() < 10


def test_transparency_is_laid_over_white(tmp_path):
    x = np.zeros((2, 2, 4), np.uint8)
    x[..., 3] = [[255, 0], [0, 51]]  # alpha
    rows = rows_of(load(save_images(tmp_path / "rgba", a_png=x, b_png=x, c_png=x)))
    assert rows.shape == (3, 2, 2, 3)
    for row in rows[..., 1]:
        np.testing.assert_array_equal(row, [[0, 255], [255, 204]])


def test_folder_errors(tmp_path):
    x = np.zeros((4, 5), np.uint8)
    folder = save_images(tmp_path / "images", a_png=x, b_png=x.T)
    fails(r"b\.png is 5 x 4 x 1 \(H x W x C\), but \S*a\.png is 4 x 5 x 1", folder)
    save_images(folder, b_png=np.zeros((4, 5, 3), np.uint8))
    fails(r"b\.png is 4 x 5 x 3 \(H x W x C\), but \S*a\.png is 4 x 5 x 1", folder)
    save_images(folder, b_png=x.astype(np.uint16))
    fails(r"b\.png: mode is I\S*, expected 8 bits per channel", folder)
    (folder / "b.png").unlink()
    whole = (folder / "a.png").read_bytes()
    for damaged in (b"", whole[:20], whole[:-30], whole[:45] + b"\0" + whole[46:]):
        (folder / "a.png").write_bytes(damaged)
        fails(r"^\S*a\.png: ", folder)
    (tmp_path / "empty").mkdir()
    fails(r"empty: has no images \(\.png \.jpg ", tmp_path / "empty")


def test_folder_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    fails(r'pillow: pip install "tinyvae\[cli\]"', tmp_path, error=ImportError)


def test_unknown_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(r"unknown data set 'mnits': did you mean 'mnist'\? \(digits, .*\); a path ", "mnits")
    fails(r"unknown data set '': choose from \(digits, ", "")
    for missing in ("x.npy", "some/mnist", Path("mnist")):
        fails("no such file or folder", missing, error=FileNotFoundError)
    Path("table.csv").write_text("1, 2\n")
    fails(r"table\.csv: unknown kind of file, expected idx \(\.gz too\)", "table.csv")
    for source in ("mnist", "x.npy"):
        fails(rf"array='X' names a member .* {source} is not one", source, array="X")


def test_a_path_may_bear_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "mnist", a_png=np.zeros((2, 2), np.uint8))
    for source in ("./mnist", Path("mnist")):
        fails("mnist: a split needs at least 3 rows, got 1", source)


def test_unknown():
    error = _text.unknown("likelihood", "bernouli", ("bernoulli", "gaussian", "bce"))
    message = "unknown likelihood 'bernouli': did you mean 'bernoulli'? (bernoulli, gaussian, bce)"
    assert isinstance(error, ValueError)
    assert str(error) == message
    assert str(_text.unknown("size", None, [1, 2])) == "unknown size None: choose from (1, 2)"
    assert _text.nearest("BCE", ["bce"]) == "bce"
    assert _text.nearest("qq", ["bce"]) is None
    assert _text.one_line(OSError("a\n  b")) == "a b"
    assert _text.one_line(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("shape", "place", "words"),
    [
        ((9,), (3,), "row 3"),
        ((9, 7), (3, 5), "row 3, column 5"),
        ((9, 7, 2), (3, 5, 1), r"row 3, position \(5, 1\)"),
        ((9, 7, 2, 1), (3, 5, 1, 0), r"row 3, pixel \(5, 1, 0\)"),
        ((3, 1 << 20), (2, 9), "row 2, column 9"),  # beyond the first rows that are read
    ],
)
def test_first_bad_value(shape, place, words):
    x = np.zeros(shape, np.float32)
    check_finite(x)
    check_range(x, 0, 1)
    for value, name in [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")]:
        x[place] = value
        x[-1] = np.nan if len(shape) == 1 else x[-1]
        with pytest.raises(ValueError, match=rf"^X has {name} at {words}$"):
            check_finite(x)
    x[place] = 1.5
    with pytest.raises(ValueError, match=rf"^pixels has 1\.5 at {words}, outside \[0, 1\]; scale$"):
        check_range(x, 0, 1, "pixels", "scale")


def test_check_range_values():
    check_range(np.array([[0, 255]], np.uint8), 0, 255)
    check_range(np.zeros((0, 3)), 0, 1)
    with pytest.raises(ValueError, match=r"X has 2 at row 0, column 1, outside \[0, 1\]$"):
        check_range(np.array([[0, 2]], np.uint8), 0, 1)
    with pytest.raises(ValueError, match=r"X has 1\.0000000000000002 at row 0, column 0, outside"):
        check_range(np.array([[np.nextafter(1, 2)]]), 0, 1)
    with pytest.raises(ValueError, match="X has nan at row 0, column 0, outside"):
        check_range(np.array([[np.nan]]), 0, np.inf)


def test_check_finite_types():
    for whole in (np.array([[1]]), np.array([[True]]), np.zeros((0, 4))):
        check_finite(whole)
    for bad in (np.array([["a"]]), np.array([[1j]])):
        with pytest.raises(ValueError, match=r"Y: dtype is .*, expected real numbers"):
            check_finite(bad, "Y")


@pytest.mark.parametrize("module", [data, sprites, _text])
def test_imports_and_examples(module):
    allowed = {*sys.stdlib_module_names, "numpy", "tinyvae"}
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed
    if module is data:
        pytest.importorskip("sklearn")
    assert doctest.testmod(module).failed == 0


def test_repr():
    x = np.zeros((2, 3))
    assert repr(Dataset("x", x, x[:1], x)) == "<Dataset x: 2 + 1 + 2 rows (3,) float64>"


def test_whole_gives_the_order_of_the_source(tmp_path):
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.savez(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "a.npy", x)
    for name in ("a.npz", "a.npy"):
        np.testing.assert_array_equal(load(tmp_path / name).whole(), x)
    digits = load("digits")
    assert not np.array_equal(digits.train[0], digits.whole()[0])
    assert len(digits.whole()) == 1797


def test_a_bad_value_is_named_by_its_row_in_the_file(tmp_path):
    x = np.zeros((20, 3), np.float32)
    x[7, 2] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(ValueError, match=r"a\.npz has NaN at row 7, column 2"):
        load(tmp_path / "a.npz")
