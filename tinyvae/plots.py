"""Pictures of a run: learning curves, and grids of rows (images, or lines where they are not).

Everything is drawn on `Figure` objects, without pyplot and its global state, and written whole or
not at all; the same input gives the same file.  Matplotlib is imported at the first picture.
Sizes: N rows, D values, H W C image; lengths are in pixels of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import replacing
from .train import RECORDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .estimator import VAE

DPI = 200
FONT = 8  # points
CELL = 96  # an image is enlarged to about this, by a whole factor so that no pixel is blurred
LINES = (192, 96)  # width and height of a cell of lines
MOST_CLASSES = 16  # that a picture of samples shows
GAP = 6  # between cells, and around everything
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe and Ito 2008


# ------------------------------------------------------------------------------------------ grids
def image_grid(
    rows: Any,
    path: str | Path,
    *,
    columns: int = 8,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> None:
    """Write a PNG of all rows, `columns` in a line.

    rows: (N, H, W, C) images, grey (C = 1), colour (C = 3), or else the channels side by side;
    (N, D) values are drawn as lines.  row_labels, column_labels: words beside and above the cells.
    limits: the values that are black and white, or at the bottom and the top; else those of rows.
    """
    rows = _checked(rows)
    limits = limits or _limits(rows)
    labels = list(row_labels), list(column_labels)
    if rows.ndim == 4:
        _write_images(_pixels(rows, limits), path, columns, labels)
    else:
        _write_lines([(rows, BLUE, "")], path, columns, labels, limits)


def reconstructions(x: Any, x_hat: Any, path: str | Path, *, columns: int = 8) -> None:
    """Write a PNG of the rows x and, below each, what the model makes of it.

    x, x_hat: (N, H, W, C) images; or (N, D) values, drawn over one another as lines.
    Images beyond the last full line of `columns` are left out.
    """
    x, x_hat = _checked(x), _checked(x_hat)
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {x.shape}, x_hat has {x_hat.shape}")
    columns, limits = min(columns, len(x)), _limits(x)
    if x.ndim == 2:
        pair = [(x, GREY, "data"), (x_hat, ORANGE, "reconstruction")]
        _write_lines(pair, path, columns, ([], []), limits)
        return
    count = len(x) // columns * columns  # whole lines only
    pairs = np.stack([a[:count].reshape(-1, columns, *a.shape[1:]) for a in (x, x_hat)], axis=1)
    cells = _pixels(pairs.reshape(-1, *x.shape[1:]), limits)  # (lines, 2, columns, ...) -> (N, ...)
    names = ["data", "reconstruction"] * (count // columns)
    _write_images(cells, path, columns, (names, []), group=2)


def _checked(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim not in (2, 4) or 0 in rows.shape:
        raise ValueError(f"rows must be (N, H, W, C) or (N, D), and not empty; got {rows.shape}")
    return rows


def _limits(rows: np.ndarray) -> tuple[float, float]:
    """The range to show: 0 to 1 if that is what the values are, else from least to largest."""
    low, high = float(rows.min()), float(rows.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, max(high, low + 1e-12))


def _pixels(images: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Values -> uint8 RGB (N, H, W, 3), enlarged without blur."""
    low, high = limits
    scaled = (images.astype(np.float64) - low) / (high - low)
    pixels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    if pixels.shape[3] not in (1, 3):
        N, H, W, C = pixels.shape
        pixels = pixels.transpose(0, 1, 3, 2).reshape(
            N, H, C * W, 1
        )  # (N, H, W, C) -> side by side
    factor = max(1, round(CELL / max(pixels.shape[1:3])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def _write_images(
    cells: np.ndarray, path: str | Path, columns: int, labels: Any, *, group: int = 1
) -> None:
    """Put cells (N, h, w, 3) in their places on one white sheet."""
    N, h, w, _ = cells.shape
    figure, corners = _sheet(N, h, w, columns, labels, group=group)
    width, height = (round(v) for v in figure.bbox.size)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for cell, (left, top) in zip(cells, corners, strict=True):
        sheet[top : top + h, left : left + w] = cell
    figure.figimage(sheet, origin="upper")
    _save(figure, path)


def _write_lines(
    series: list[tuple[np.ndarray, str, str]],
    path: str | Path,
    columns: int,
    labels: Any,
    limits: tuple[float, float],
) -> None:
    """Every row (D,) as a line over its features, in a frame of its own; all on one scale."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    w, h = LINES
    N, D = series[0][0].shape
    figure, corners = _sheet(N, h, w, columns, labels, below=40)
    axes, height = _whole(figure), figure.bbox.height
    x = np.linspace(0.04 * w, 0.96 * w, D) if D > 1 else np.array([0.5 * w])
    for values, colour, _ in series:
        y = 0.08 * h + 0.84 * h * (values - limits[0]) / (limits[1] - limits[0])
        lines = [
            np.column_stack([left + x, height - top - h + np.clip(row, 0, h)])
            for row, (left, top) in zip(y, corners, strict=True)
        ]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.8))
        if D <= 32:
            axes.plot(*np.concatenate(lines).T, ".", color=colour, markersize=2)
    for left, top in corners:
        frame = Rectangle((left, height - top - h), w, h, fill=False, linewidth=0.3, edgecolor=GREY)
        axes.add_patch(frame)
    note = f"each frame: {D} features from left to right, {limits[0]:.3g} to {limits[1]:.3g}"
    axes.text(GAP, GAP + 6, note, fontsize=FONT - 1, color="0.35", va="bottom")
    if named := [Line2D([], [], color=c, label=name) for _, c, name in series if name]:
        axes.legend(handles=named, loc="lower right", ncols=2, fontsize=FONT - 1, frameon=False)
    _save(figure, path)


def _whole(figure: Figure) -> Axes:
    """Axes that cover the figure, in pixels."""
    axes = figure.add_axes((0, 0, 1, 1))
    width, height = figure.bbox.size
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def _sheet(
    N: int,
    h: int,
    w: int,
    columns: int,
    labels: tuple[list[str], list[str]],
    *,
    group: int = 1,
    below: int = 0,
) -> tuple[Figure, list[tuple[int, int]]]:
    """A figure with its labels, and the (left, top) of N cells of h x w pixels.

    group: lines that belong together, apart from the next ones.  below: free pixels at the end.
    """
    from matplotlib.figure import Figure

    columns = min(columns, N)
    beside, above = labels
    left = GAP + (_text_width(beside) + 2 * GAP if beside else 0)
    top = GAP + (FONT * DPI // 72 + GAP if above else 0)
    space = 0 if group == 1 else 3 * GAP
    lefts = [left + j * (w + GAP) for j in range(columns)]
    tops = [top + i * (h + GAP) + i // group * space for i in range(math.ceil(N / columns))]
    width, height = lefts[-1] + w + GAP, tops[-1] + h + GAP + below
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for y, label in zip(tops, beside, strict=False):
        place = (left - 2 * GAP) / width, 1 - (y + h / 2) / height
        figure.text(*place, label, fontsize=FONT, ha="right", va="center")
    for x, label in zip(lefts, above, strict=False):
        place = (x + w / 2) / width, 1 - (top - GAP) / height
        figure.text(*place, label, fontsize=FONT, ha="center", va="bottom")
    return figure, [(lefts[i % columns], tops[i // columns]) for i in range(N)]


def _text_width(labels: Sequence[str]) -> int:
    """Pixels that the longest label takes."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = RendererAgg(1, 1, DPI), FontProperties(size=FONT)
    widths = [renderer.get_text_width_height_descent(label, font, False)[0] for label in labels]
    return math.ceil(max(widths))


def _save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG that names no date and no software."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


# ----------------------------------------------------------------------------------------- curves
def curves(history: Sequence[dict[str, Any]], path: str | Path, *, loss: bool = False) -> None:
    """Write a PNG of a training: ELBO, nll, KL, KL of each latent dimension, active units.

    history: an epoch's record each, as `VAE.history_` or the lines of metrics.jsonl.
    loss: the objective bounds no likelihood: show its negative, and call it a loss.
    Raises ValueError if there is no epoch.
    """
    from matplotlib.figure import Figure

    if not history:
        raise ValueError("there is no epoch to draw")
    figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2, 3)
    bound, nll = ("loss", "cross-entropy") if loss else ("ELBO", "nll, -log p(x|z)")
    titles = {"elbo": bound, "nll": nll, "kl": "KL(q(z|x), p(z))"}
    for j, (key, title) in enumerate(titles.items()):
        axes, sign = figure.add_subplot(grid[0, j]), -1 if loss and key == "elbo" else 1
        _plot(axes, history, key, "training", BLUE, sign)
        if "validation_" + key in history[-1]:
            _plot(axes, history, "validation_" + key, "validation", ORANGE, sign)
            axes.legend(fontsize=FONT, frameon=False)
        _style(axes, history, title, "nats per row")
    if history[-1]["kl_per_dimension"]:
        _kl_map(figure, figure.add_subplot(grid[1, :2]), history)
    else:
        _own_log(figure.add_subplot(grid[1, :2]), history)
    _active(figure.add_subplot(grid[1, 2]), history)
    _save(figure, path)


def _plot(axes: Axes, history: Any, key: str, label: str, colour: str, sign: int = 1) -> None:
    """One line over the epochs, dots on it while they are few."""
    dots = "o" if len(history) <= 20 else ""
    epochs, values = [r["epoch"] for r in history], [sign * r[key] for r in history]
    axes.plot(epochs, values, color=colour, label=label, linewidth=1.2, marker=dots, markersize=3)


def _style(axes: Axes, history: Any, title: str, unit: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=FONT + 1)
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel(unit, fontsize=FONT)
    axes.tick_params(labelsize=FONT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)


def _kl_map(figure: Figure, axes: Axes, history: Any) -> None:
    """KL of each latent dimension (down, most used first) at each epoch (across)."""
    kl = np.array(
        [record["kl_per_dimension"] for record in history]
    ).T  # (epochs, Z) -> (Z, epochs)
    order = np.argsort(-kl[:, -1], kind="stable")
    extent = (history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5, len(kl) - 0.5, -0.5)
    image = axes.imshow(
        kl[order], aspect="auto", extent=extent, cmap="magma_r", vmin=0, interpolation="nearest"
    )
    _style(axes, history, "KL of each latent dimension")
    axes.set_yticks(range(len(kl)), [f"z{j}" for j in order])
    axes.tick_params(axis="y", labelsize=min(FONT, 90 / len(kl)), length=0)
    if len(kl) > 25:
        axes.set_yticks([])
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("nats", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)


def _own_log(axes: Axes, history: Any) -> None:
    """What the model itself reports, a line each, where the KL has no part for each dimension."""
    names = [name for name in history[-1] if name not in RECORDED]
    for name in names:
        values = [record[name] for record in history]
        axes.plot([record["epoch"] for record in history], values, label=name, linewidth=1.2)
    if names:
        axes.legend(fontsize=FONT, frameon=False)
    _style(axes, history, "what the model reports")


def _active(axes: Axes, history: Any) -> None:
    """How many latent dimensions are used."""
    from matplotlib.ticker import MaxNLocator

    size = len(history[-1]["kl_per_dimension"])
    if size:
        axes.axhline(size, color=GREY, linewidth=0.8, linestyle=":")
    _plot(axes, history, "active_units", "", GREEN)
    _style(axes, history, f"active units, of {size}" if size else "active units")
    size = size or max(1, *(record["active_units"] for record in history))
    axes.set_ylim(0, size * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


# --------------------------------------------------------------------------- pictures of a model
def samples(model: VAE, path: str | Path, *, n: int = 64, seed: int = 0, y: Any = None) -> None:
    """Write a PNG of n rows decoded from z ~ p(z).

    y: a label for all, or one for each row; without it a model of classes shows a line of each.
    """
    columns, names = min(16, math.ceil(math.sqrt(n))), []
    if y is None and model.classes_ is not None:
        classes = model.classes_[:MOST_CLASSES]
        columns = math.ceil(n / len(classes))
        n, y, names = columns * len(classes), np.repeat(classes, columns), list(map(str, classes))
    rows = as_seen(model, model.sample(n, seed, y=y))
    image_grid(rows, path, columns=columns, limits=limits(model), row_labels=names)


def every_class(model: VAE, n: int) -> np.ndarray | None:
    """n labels, the model's classes in turn; None if it has none."""
    return None if model.classes_ is None else np.resize(model.classes_, n)


def reconstruction(model: VAE, rows: np.ndarray, path: str | Path, *, y: Any = None) -> None:
    """Write a PNG of rows (N, ...) above what the model makes of them; y: their labels."""
    reconstructions(as_seen(model, rows), as_seen(model, model.reconstruct(rows, y)), path)


def interpolation(
    model: VAE,
    ends: np.ndarray,
    path: str | Path,
    *,
    steps: int = 9,
    names: Sequence[str] = "ab",
    y: Any = None,
) -> None:
    """Write a PNG of the ways through latent space from ends[0] to ends[1], between the two.

    ends: (2, ...), two rows as fit takes them, called `names`; y: their labels.
    """
    a, b = as_seen(model, ends)
    lines = []
    for spherical in (False, True):
        between = model.interpolate(ends[0], ends[1], steps, spherical=spherical, y=y)
        lines += [a, *as_seen(model, between), b]
    titles = [names[0], *(f"{t:.2g}" for t in np.linspace(0, 1, steps)), names[1]]
    image_grid(
        np.stack(lines), path, columns=steps + 2, row_labels=("linear", "spherical"),
        column_labels=titles, limits=limits(model),
    )  # fmt: skip


def traversal(
    model: VAE,
    path: str | Path,
    *,
    kl: Sequence[float],
    row: np.ndarray | None = None,
    steps: int = 9,
    top: int = 20,
    y: Any = None,
) -> None:
    """Write a PNG of each latent dimension moved over quantiles of the prior.

    kl: (Z,) nats, of each dimension; the `top` largest are shown, the largest first.  Empty for a
    model whose KL has no such parts: the first `top` are shown.
    row: whose code the other dimensions stay at; the prior's mean by default.  y: the label of all.
    """
    known = len(kl) > 0
    order = np.argsort(-np.asarray(kl if known else np.zeros(model.latent_dim)), kind="stable")[
        :top
    ]
    rows = model.traverse(row, steps, y=y)[order]  # (top, steps, ...)
    shown = as_seen(model, rows.reshape(-1, *rows.shape[2:]))
    image_grid(
        shown, path, columns=steps, limits=limits(model),
        row_labels=[f"z{j}  {kl[j]:.2f} nats" if known else f"z{j}" for j in order],
        column_labels=[f"{100 * p:.3g}%" for p in np.linspace(0.025, 0.975, steps)],
    )  # fmt: skip


def as_seen(model: VAE, rows: np.ndarray) -> np.ndarray:
    """Rows in the shape and scale in which the network sees them: images if it sees images."""
    scale = model.scale_ if rows.dtype == np.uint8 else 1.0
    return rows.reshape(len(rows), *model.data_shape_) / scale


def limits(model: VAE) -> tuple[float, float] | None:
    """The values that are black and white; None if they are not known beforehand."""
    return model.likelihood_.limits if model.scale_ == 1 else (0.0, 1.0)
