"""plots.py: pixels where they belong, the same file twice, and no half-written picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyvae as tv
from tinyvae import plots


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def history(epochs: int, latent_dim: int = 3, validation: bool = True) -> list[dict]:
    records = []
    for epoch in range(1, epochs + 1):
        values = {"elbo": -30.0 + epoch, "nll": 29.0 - epoch, "kl": 1.0}
        record = values | {"epoch": epoch, "active_units": 2, "kl_per_dimension": [0.5, 0.2, 0.3]}
        record["kl_per_dimension"] = [0.1 * (j + 1) for j in range(latent_dim)]
        if validation:
            record |= {f"validation_{key}": value + 0.5 for key, value in values.items()}
        records.append(record)
    return records


def test_grey_images_are_enlarged_without_blur(tmp_path):
    images = np.zeros((5, 4, 6, 1))
    images[3, 1, 2, 0] = 0.5
    plots.image_grid(images, tmp_path / "a.png", columns=3)
    sheet = read(tmp_path / "a.png")
    factor = round(plots.CELL / 6)
    h, w, gap = 4 * factor, 6 * factor, plots.GAP
    assert sheet.shape == (gap + 2 * (h + gap), gap + 3 * (w + gap), 3)
    cell = sheet[gap + h + gap :, gap:][:h, :w]  # the fourth: second line, first column
    expected = np.zeros((4, 6), np.uint8)
    expected[1, 2] = 128
    np.testing.assert_array_equal(cell[..., 0], expected.repeat(factor, 0).repeat(factor, 1))
    assert (sheet[:gap] == 255).all()
    assert (sheet[gap + h + gap :, -w:] == 255).all()  # no sixth image


def test_colour_and_other_channels(tmp_path):
    images = np.zeros((1, 2, 2, 3))
    images[..., 0] = 1
    plots.image_grid(images, tmp_path / "rgb.png")
    np.testing.assert_array_equal(read(tmp_path / "rgb.png")[20, 20], [255, 0, 0])
    images = np.stack([np.zeros((3, 3)), np.ones((3, 3))], axis=-1)[None]
    plots.image_grid(images, tmp_path / "two.png")
    sheet = read(tmp_path / "two.png")
    assert sheet[20, 10].tolist() == [0, 0, 0]
    assert sheet[20, -10].tolist() == [255, 255, 255]


def test_limits(tmp_path):
    images = np.array([-1.0, 0.0, 3.0]).reshape(3, 1, 1, 1)
    plots.image_grid(images, tmp_path / "own.png")
    plots.image_grid(images, tmp_path / "given.png", limits=(0, 2))
    middle, step = plots.GAP + plots.CELL // 2, plots.CELL + plots.GAP
    for name, expected in (("own", [0, 64, 255]), ("given", [0, 0, 255])):
        line = read(tmp_path / f"{name}.png")[middle, middle::step, 0]
        assert line.tolist() == expected


def test_a_constant_picture_is_drawn(tmp_path):
    plots.image_grid(np.full((2, 3, 3, 1), 7.0), tmp_path / "a.png")
    plots.image_grid(np.full((2, 3), 7.0), tmp_path / "b.png")


def test_labels_take_room(tmp_path):
    images = np.zeros((4, 8, 8, 1))
    plots.image_grid(images, tmp_path / "bare.png", columns=2)
    plots.image_grid(
        images, tmp_path / "named.png", columns=2, row_labels=["a", "long name"], column_labels="xy"
    )
    bare, named = read(tmp_path / "bare.png"), read(tmp_path / "named.png")
    assert named.shape[0] > bare.shape[0]
    assert named.shape[1] > bare.shape[1] + 50
    assert (named[:, : named.shape[1] - bare.shape[1]] < 128).any()  # letters


@pytest.mark.parametrize("features", [1, 5, 200])
def test_rows_that_are_no_images_are_lines(tmp_path, features):
    rows = np.random.default_rng(0).standard_normal((6, features))
    plots.image_grid(rows, tmp_path / "a.png", columns=3)
    plots.reconstructions(rows, rows + 0.1, tmp_path / "b.png", columns=3)
    blue = np.array([0x00, 0x72, 0xB2])
    assert (abs(read(tmp_path / "a.png").astype(int) - blue).sum(-1) < 30).any()
    assert read(tmp_path / "a.png").shape == read(tmp_path / "b.png").shape


def test_reconstructions_stand_below_the_data(tmp_path):
    x, x_hat = np.zeros((5, 4, 4, 1)), np.ones((5, 4, 4, 1))
    plots.reconstructions(x, x_hat, tmp_path / "a.png", columns=2)
    sheet = read(tmp_path / "a.png")
    dark = (sheet[:, -20, 0] == 0).sum()
    assert dark == 2 * plots.CELL  # two lines of data; the fifth image has no full line
    with pytest.raises(ValueError, match="x has shape"):
        plots.reconstructions(x, x_hat[:2], tmp_path / "b.png")


@pytest.mark.parametrize("shape", [(0, 4, 4, 1), (3, 4, 4), (2, 0)])
def test_unsuitable_rows_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="rows must be"):
        plots.image_grid(np.zeros(shape), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("epochs", "latent_dim", "validation"), [(1, 3, True), (2, 1, False), (40, 30, True)]
)
def test_curves(tmp_path, epochs, latent_dim, validation):
    records = history(epochs, latent_dim, validation)
    plots.curves(records, tmp_path / "a.png")
    plots.curves(records, tmp_path / "b.png", loss=True)
    sheet = read(tmp_path / "a.png")
    assert sheet.shape == (1000, 1800, 3)
    assert (sheet < 100).any()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_curves_of_a_model_with_a_log_of_its_own(tmp_path):
    """Its KL has no part for each dimension: what it reports is shown instead."""
    records = history(5, latent_dim=0)
    plots.curves(records, tmp_path / "a.png")
    for i, record in enumerate(records):
        record |= {"kl_1": 0.5 * i, "kl_2": 1.0}
    plots.curves(records, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_curves_need_an_epoch(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        plots.curves([], tmp_path / "a.png")


def test_the_same_input_gives_the_same_file(tmp_path):
    rng = np.random.default_rng(0)
    images, rows = rng.random((9, 5, 5, 1)), rng.random((9, 5))
    for name in "ab":
        plots.curves(history(5), tmp_path / f"{name}1.png")
        plots.image_grid(images, tmp_path / f"{name}2.png", row_labels=["r"] * 2)
        plots.image_grid(rows, tmp_path / f"{name}3.png")
    for i in "123":
        assert (tmp_path / f"a{i}.png").read_bytes() == (tmp_path / f"b{i}.png").read_bytes()


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fails(figure, file, **options):
        file.write(b"half")
        raise OSError("broken")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="broken"):
        plots.image_grid(np.zeros((1, 2, 2, 1)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def model():
    x = (np.random.default_rng(0).random((40, 6, 6)) < 0.3).astype(np.uint8)
    return tv.VAE(3, hidden=(8,), epochs=2, random_state=0).fit(x), x


def test_pictures_of_a_model(model, tmp_path):
    vae, x = model
    plots.samples(vae, tmp_path / "samples.png", n=10)
    plots.reconstruction(vae, x[:8], tmp_path / "reconstruction.png")
    plots.interpolation(vae, x[:2], tmp_path / "interpolation.png", steps=3)
    plots.traversal(vae, tmp_path / "traversal.png", kl=[0.1, 0.3, 0.2], row=x[0], steps=3, top=2)
    step = plots.CELL + plots.GAP
    sizes = {path.stem: read(path).shape[:2] for path in tmp_path.iterdir()}
    assert sizes["samples"] == (3 * step + plots.GAP, 4 * step + plots.GAP)
    assert sizes["interpolation"][1] > 5 * step  # the two rows, and three between
    assert 2 * step < sizes["traversal"][0] < 3 * step


def test_as_seen_scales_pixels(model):
    vae, x = model
    assert plots.as_seen(vae, x).max() == 1
    assert plots.as_seen(vae, x).shape == (40, 6, 6, 1)
    assert plots.limits(vae) == (0, 1)


def test_pyplot_and_its_global_state_stay_out(tmp_path):
    code = (
        "import sys, numpy as np; from tinyvae import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.image_grid(np.zeros((1, 2, 2, 1)), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = [str(Path(__file__).parents[1] / part) for part in (".", "kernels")]
    code = f"import sys; sys.path[:0] = {path!r}\n{code}"
    subprocess.run([sys.executable, "-c", code], check=True)
