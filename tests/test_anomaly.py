"""anomaly.py: rows that are unlike the rows a VAE was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

import tinyvae as tv
from tinyvae.anomaly import SCORES, AnomalyDetector

ADBENCH = Path(__file__).parents[2] / "shared" / "data" / "adbench"
TINY = {"hidden": (16,), "batch_size": 64, "random_state": 0, "learning_rate": 0.01}


def roc_auc(scores, anomalous):
    """The probability that an anomaly has the higher score of a pair (Mann and Whitney)."""
    ranks, n = rankdata(scores), anomalous.sum()
    return (ranks[anomalous].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


def line(n=512, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) * [1, 2, -1, 0.5] + rng.normal(0, 0.1, (n, 4))


@pytest.fixture(scope="module")
def detector():
    vae = tv.VAE(1, likelihood="gaussian:0.02", epochs=40, **TINY)
    return AnomalyDetector(vae, contamination=0.05).fit(line())


@pytest.mark.parametrize("score", SCORES)
def test_rows_off_the_line_are_found(detector, score):
    normal, off = line(64, seed=2), line(64, seed=3) * [1, -1, 1, 1]
    found = AnomalyDetector(detector.vae_, score=score, refit=False).fit(line())
    X, anomalous = np.concatenate([normal, off]), np.arange(128) >= 64
    assert roc_auc(-found.score_samples(X), anomalous) > 0.9
    assert (found.predict(off) == -1).mean() > 0.8
    assert (found.predict(normal) == 1).mean() > 0.75


def test_the_words_of_scikit_learn(detector):
    X = line(32, seed=4)
    scores, decided = detector.score_samples(X), detector.decision_function(X)
    np.testing.assert_array_equal(decided, scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X), np.where(decided < 0, -1, 1))
    np.testing.assert_array_equal(detector.score_samples(X), scores)  # the same noise
    assert set(detector.get_params()) == {"vae", "score", "contamination", "samples", "refit"}
    assert not hasattr(detector.vae, "network_")  # a copy was trained
    found = AnomalyDetector(tv.VAE(1, likelihood="gaussian", epochs=1, **TINY)).fit_predict(X)
    assert set(found) <= {-1, 1}


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.5])
def test_the_threshold_is_a_quantile_of_the_training_scores(detector, contamination):
    options = {"contamination": contamination, "refit": False}
    found = AnomalyDetector(detector.vae_, **options).fit(line())
    assert abs((found.predict(line()) == -1).mean() - contamination) < 2 / 512


def test_more_samples_bring_the_elbo_to_its_mean(detector):
    X = line(16, seed=5)
    vae = detector.vae_
    exact = np.mean([vae.elbo(X, 1000 + k) for k in range(400)], axis=0)
    errors = []
    for samples in (1, 100):
        found = AnomalyDetector(vae, samples=samples, refit=False).fit(line())
        errors.append(np.abs(found.score_samples(X) - exact).mean())
    assert errors[1] < 0.3 * errors[0]


def test_contributions_point_at_the_bad_value(detector):
    X = line(40, seed=6)
    X[np.arange(40), np.arange(40) % 4] += 3
    for score in ("elbo", "reconstruction"):
        found = AnomalyDetector(detector.vae_, score=score, refit=False).fit(line())
        each = found.contributions(X)
        assert each.shape == X.shape
        normal = found.contributions(line(400, seed=7)).mean(axis=0)
        assert ((each - normal).argmax(axis=1) == np.arange(40) % 4).mean() > 0.6
    np.testing.assert_allclose(found.score_samples(X), -each.sum(axis=1), rtol=1e-6)


def test_contributions_are_the_nll_of_a_row(detector):
    X, vae = line(8, seed=8), detector.vae_
    rows = vae._checked_rows(X, "X")
    (_, batch), *_ = rows.in_order(8)
    with tv.no_grad():
        nll = vae.likelihood_.nll(vae.network_.reconstruct(batch), batch.x).data
    np.testing.assert_allclose(detector.contributions(X).sum(axis=1), nll, rtol=1e-5)


def test_images_and_missing_values():
    x = tv.data.load("digits").train[:128].astype(float)
    X = np.where(np.random.default_rng(0).random(x.shape) < 0.2, np.nan, x)
    vae = tv.VAE(2, likelihood="gaussian", missing=True, epochs=1, **TINY)
    for score in SCORES:
        found = AnomalyDetector(vae, score=score).fit(X)
        assert np.isfinite(found.score_samples(X)).all()
        each = found.contributions(X)
        assert each.shape == X.shape
        assert (each[np.isnan(X)] == 0).all()


def test_bad_settings_are_refused():
    X = line(8)
    with pytest.raises(ValueError, match="unknown score 'elb': did you mean 'elbo'"):
        AnomalyDetector(score="elb").fit(X)
    with pytest.raises(ValueError, match=r"contamination must be in \(0, 1\), got 1"):
        AnomalyDetector(contamination=1).fit(X)
    with pytest.raises(ValueError, match="samples must be a whole number >= 1, got 0"):
        AnomalyDetector(samples=0).fit(X)
    with pytest.raises(ValueError, match="refit=False needs a fitted vae"):
        AnomalyDetector(refit=False).fit(X)
    with pytest.raises(tv.NotFittedError, match="this AnomalyDetector is not fitted yet"):
        AnomalyDetector().predict(X)


@pytest.mark.parametrize("name", ["6_cardio", "38_thyroid"])
def test_as_good_as_pca_on_real_anomalies(name):
    """Trained on half of the normal rows; PCA reconstructs with as many dimensions."""
    path = ADBENCH / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/adbench/{name}.npz")
    with np.load(path) as data:
        X, anomalous = data["X"], data["y"] == 1
    train = np.random.default_rng(0).permutation(np.flatnonzero(~anomalous))
    train = train[: len(train) // 2]
    X = (X - X[train].mean(axis=0)) / np.maximum(X[train].std(axis=0), 1e-9)
    held = np.setdiff1d(np.arange(len(X)), train)
    axes = np.linalg.svd(X[train], full_matrices=False)[2][:3]
    pca = roc_auc(((X - X @ axes.T @ axes) ** 2).sum(axis=1)[held], anomalous[held])
    vae = tv.VAE(3, hidden=(64,), likelihood="gaussian:learned", activation="gelu", epochs=40,
                 batch_size=64, learning_rate=2e-3, random_state=0)  # fmt: skip
    found = AnomalyDetector(vae, score="reconstruction").fit(X[train])
    auc = roc_auc(-found.score_samples(X[held]), anomalous[held])
    assert auc > 0.9
    assert auc > pca - 0.01
