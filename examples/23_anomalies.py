"""Anomaly detection on tables: VAE scores beside PCA's reconstruction error, as ROC AUC.

    python examples/23_anomalies.py [FOLDER]

FOLDER holds .npz files of ADBench (Han et al. 2022; github.com/Minqi824/ADBench), of
X (N, D) and y, 1 for an anomaly.  Both models are fitted to half of the normal rows, in three
dimensions; the other rows are scored.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

import tinyvae as tv

SHARED = Path(__file__).parents[2] / "shared" / "data" / "adbench"
SCORES = tv.anomaly.SCORES
Z = 3

files = sorted(Path(sys.argv[1] if len(sys.argv) > 1 else SHARED).glob("*.npz"))
if not files:
    sys.exit("no .npz files: give the folder of ADBench's data")
print(f"{'data':18}{'rows':>7}{'PCA':>9}" + "".join(f"{score:>16}" for score in SCORES))
for file in files:
    with np.load(file) as data:
        X, y = data["X"], data["y"]
    train = np.random.default_rng(0).permutation(np.flatnonzero(y == 0))
    train = train[: len(train) // 2]
    held = np.setdiff1d(np.arange(len(X)), train)
    X = (X - X[train].mean(axis=0)) / np.maximum(X[train].std(axis=0), 1e-9)

    axes = np.linalg.svd(X[train], full_matrices=False)[2][:Z]
    aucs = [roc_auc_score(y[held], ((X - X @ axes.T @ axes) ** 2).sum(axis=1)[held])]
    vae = tv.VAE(Z, hidden=(64,), likelihood="gaussian:learned", activation="gelu", epochs=40,
                 batch_size=64, learning_rate=2e-3, random_state=0)  # fmt: skip
    detector = tv.AnomalyDetector(vae, contamination=0.05).fit(X[train])
    for score in SCORES:
        scores = detector.set_params(score=score).score_samples(X[held])
        aucs.append(roc_auc_score(y[held], -scores))
    print(f"{file.stem:18}{len(X):7}{aucs[0]:9.3f}" + "".join(f"{auc:16.3f}" for auc in aucs[1:]))
