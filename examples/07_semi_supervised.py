"""Semi-supervised digits: 30 labels, and a thousand rows without.

    python examples/07_semi_supervised.py

M2 sums the unknown labels out (Kingma et al. 2014).  M1 + M2 is a pipeline: a plain VAE of all
rows, then M2 on its codes.  The same with 100 labels of MNIST: python -m benchmarks.semi_supervised
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import tinyvae as tv

digits = tv.data.load("digits")
x, test = digits.train.reshape(-1, 64), digits.test.reshape(-1, 64)
y, rng = np.full(len(x), -1), np.random.default_rng(0)
for c in range(10):
    y[rng.choice(np.flatnonzero(digits.train_labels == c), 3, replace=False)] = c
known = y >= 0


def accuracy(model):
    return (model.predict(test) == digits.test_labels).mean()


common = {"hidden": (100,), "learning_rate": 2e-3, "random_state": 0}
m1 = tv.VAE(10, binarize="dynamic", epochs=60, **common)
codes = {"likelihood": "gaussian", "variance": "learned"}
models = {
    "linear classifier alone": LogisticRegression(max_iter=1000).fit(x[known], y[known]),
    "M2": tv.VAE(6, model="m2:50:0.1", binarize="dynamic", epochs=60, **common).fit(x, y),
    "M1 + M2": make_pipeline(m1, tv.VAE(4, model="m2:50:0.1", epochs=60, **codes, **common)),
}
models["M1 + M2"].fit(x, y)
for name, model in models.items():
    print(f"{name:24s} {accuracy(model):.1%} of the test digits")
