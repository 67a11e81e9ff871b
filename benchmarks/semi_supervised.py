"""What 100 labels of MNIST are worth: M2, and M1 + M2, beside the same classifier alone.

    python -m benchmarks.semi_supervised --data-dir FOLDER [--on pixels]

M1 is a plain VAE (784-400-50) of the 50,000 training images without labels, ten epochs.  Its codes
are the x of M2 (10 latents, one layer of 200 units in each network), which sees the labels of ten
rows of each class; so does M2's classifier alone, on the codes and on the pixels.  With `--on
pixels` M2's x are the pixels, drawn as bits anew at every step.  Accuracies are those of the 10,000
test images, for several choices of the labelled rows.  The options were chosen on the validation
rows, those for pixels with 10,000 images of 14 x 14.  Kingma et al. 2014, table 1, have 88.0 % with
M2 and 96.7 % with M1 + M2, after far longer training.
"""

from __future__ import annotations

import argparse

import numpy as np

import tinyvae as tv
from tinyvae import nn, ops

from . import _common

M1 = {"latent_dim": 50, "hidden": (400,), "binarize": "dynamic", "epochs": 10, "random_state": 0}
M2 = {
    "latent_dim": 10, "model": "m2:50:0.1", "hidden": (200,), "likelihood": "gaussian",
    "variance": "learned", "learning_rate": 2e-3, "batch_size": 200, "epochs": 10,
    "random_state": 0,
}  # fmt: skip
# few latents and many rows with labels: the class is to be in y, not in z
M2_OF_PIXELS = {
    "latent_dim": 5, "model": "m2:10:0.5", "hidden": (200,), "binarize": "dynamic",
    "batch_size": 100, "epochs": 4, "random_state": 0,
}  # fmt: skip
STEPS = 300  # of the classifier alone: its accuracy has settled by then


def few(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """The labels of so many rows of each class, drawn by seed; -1 for the others."""
    rng, y = np.random.default_rng(seed), np.full(len(labels), -1)
    for c in np.unique(labels):
        y[rng.choice(np.flatnonzero(labels == c), each, replace=False)] = c
    return y


def alone(x: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy of M2's classifier, trained on the labelled rows and nothing else."""
    rng, target = np.random.default_rng(0), np.eye(10, dtype=np.float32)[y]
    net = nn.Sequential(nn.Linear(x.shape[1], 200, rng=rng), ops.relu, nn.Linear(200, 10, rng=rng))
    optimizer = tv.optim.Adam(net.parameters(), learning_rate=1e-3)
    for _ in range(STEPS):
        ops.mean(-ops.sum(ops.log_softmax(net(x)) * target, axis=1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((net(test).data.argmax(axis=1) == test_y).mean())


def on_codes(data: tv.data.Dataset, choices: int) -> tuple[list[str], list[list]]:
    """A row for each choice of the labels: the classifier on pixels and on codes, and M1 + M2."""
    header = ["labels", "classifier on pixels", "classifier on codes", "M1 + M2", "seconds of M2"]
    m1 = tv.VAE(**M1).fit(data.train)
    codes, test = m1.transform(data.train), m1.transform(data.test)
    pixels, test_pixels = flat(data.train), flat(data.test)
    rows = []
    for seed in range(choices):
        y = few(data.train_labels, 10, seed)
        known = y >= 0
        on_pixels = alone(pixels[known], y[known], test_pixels, data.test_labels)
        on_codes = alone(codes[known], y[known], test, data.test_labels)
        m2 = tv.VAE(**M2).fit(codes, y)
        right = float((m2.predict(test) == data.test_labels).mean())
        rows.append([seed, on_pixels, on_codes, right, m2.history_[-1]["seconds"]])
        print(_common.table(header, rows[-1:]), flush=True)
    return header, rows


def on_pixels(data: tv.data.Dataset, choices: int) -> tuple[list[str], list[list]]:
    """A row for each choice of the labels: the classifier on pixels, and M2."""
    header, rows = ["labels", "classifier on pixels", "M2"], []
    pixels, test_pixels = flat(data.train), flat(data.test)
    for seed in range(choices):
        y = few(data.train_labels, 10, seed)
        known = y >= 0
        m2 = tv.VAE(**M2_OF_PIXELS).fit(data.train, y)
        rows.append(
            [
                seed,
                alone(pixels[known], y[known], test_pixels, data.test_labels),
                float((m2.predict(data.test) == data.test_labels).mean()),
            ]
        )
        print(_common.table(header, rows[-1:]), flush=True)
    return header, rows


def flat(images: np.ndarray) -> np.ndarray:
    """uint8 (N, ...) -> (N, D) in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder of the four MNIST files")
    parser.add_argument("--choices", type=int, default=3, help="of the labelled rows")
    parser.add_argument("--on", choices=["codes", "pixels"], default="codes", help="M2's x")
    options = parser.parse_args()
    data = tv.data.load("mnist", data_dir=options.data_dir)
    measure = on_pixels if options.on == "pixels" else on_codes
    header, rows = measure(data, options.choices)
    print(_common.table(header, [*rows, ["mean", *np.mean(rows, axis=0)[1:].tolist()]]))
    used = {"m2": M2_OF_PIXELS} if options.on == "pixels" else {"m1": M1, "m2": M2}
    path = None
    if options.on == "pixels":
        path = _common.RESULTS / f"semi_supervised-pixels-{_common.machine()}.json"
    found = used | {"header": header, "rows": rows}
    print("written:", _common.write("semi_supervised", found, path))


if __name__ == "__main__":
    main()
