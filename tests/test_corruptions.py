"""corruptions.py: what the encoder sees in training, while the target stays clean."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import corruptions, models, ops
from tinyvae.batches import Rows
from tinyvae.corruptions import Mask, Noise, Salt
from tinyvae.ops.noise import Draw, Stream

ALL = [Noise(0.3), Mask(0.2), Salt(0.1)]
PLACE = {"seed": 1, "stream": Stream.CORRUPT, "step": 0, "offset": 0}


@pytest.mark.parametrize("corruption", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_how_much_is_damaged(corruption, dtype):
    x = np.full((100, 500), 0.5, dtype)
    found = corruption(x, **PLACE)
    assert found.dtype == dtype
    if corruption.name == "noise":
        np.testing.assert_allclose((found - x).std(), 0.3, rtol=0.02)
        assert abs((found - x).mean()) < 0.01
    else:
        np.testing.assert_allclose((found != x).mean(), corruption.rate, rtol=0.05)
        grains = {0.0, 1.0} if corruption.name == "salt" else {0.0}
        assert set(np.unique(found)) == {0.5} | grains
    if corruption.name == "salt":
        np.testing.assert_allclose((found == 1).mean(), 0.05, rtol=0.1)
    np.testing.assert_array_equal(x, 0.5)


@pytest.mark.parametrize("corruption", ALL, ids=str)
def test_text_and_back(corruption):
    text = tv.spelling.spell(corruption, corruptions.KINDS)
    assert corruptions.resolve(text) == corruption
    assert corruptions.resolve(corruption) is corruption
    assert corruptions.resolve(None) is None


def test_bad_ones_are_refused():
    with pytest.raises(ValueError, match="unknown corruption 'nois': did you mean 'noise'"):
        corruptions.resolve("nois:1")
    with pytest.raises(ValueError, match=r"rate must be between 0 and 1, got 1\.5"):
        corruptions.resolve("mask:1.5")
    with pytest.raises(ValueError, match=r"std must be positive and finite, got -1\.0"):
        Noise(-1.0)
    with pytest.raises(ValueError, match="corruption damages numbers, which tokens are not"):
        tv.VAE(model="sequence", likelihood="tokens:3", corruption="mask:0.2").fit(np.zeros((4, 3)))


def test_training_batches_are_damaged_and_evaluation_is_not(rng):
    rows = Rows(rng.random((6, 4)), (4,), np.float64, corruption=Mask(0.5))
    batch = rows.take(np.arange(6), stream=Stream.BINARIZE, step=3)
    assert (batch.seen == 0).any()
    np.testing.assert_array_equal(batch.x, rows.array)
    np.testing.assert_array_equal(batch[2:4].seen, batch.seen[2:4])
    again = rows.take(np.arange(6), stream=Stream.BINARIZE, step=3)
    np.testing.assert_array_equal(again.seen, batch.seen)
    other = rows.take(np.arange(6), stream=Stream.BINARIZE, step=4)
    assert (other.seen != batch.seen).any()
    for _, clean in rows.in_order(4):
        assert clean.seen is clean.x


def test_the_target_stays_clean(rng):
    """The loss of a damaged batch: nll of the clean x under the damaged x's posterior."""
    parts = models.Parts((5,), 2, tv.likelihoods.Gaussian(), hidden=(4,), activation="tanh",
                         rng=np.random.default_rng(0), dtype=np.float64)  # fmt: skip
    model = models.vae.VAE().build(parts)
    batch = tv.batches.Batch(rng.normal(size=(3, 5)), corrupted=rng.normal(size=(3, 5)))
    terms = model.loss(batch, Draw(3, seed=1, dtype=np.float64), beta=1.0, rows=3)
    mu, logvar = model.encode(batch.corrupted)
    eps = Draw(3, seed=1, dtype=np.float64).normal(2)
    output = model.decode(ops.reparameterize(mu, logvar, eps))
    np.testing.assert_allclose(terms.nll, model.likelihood.nll(output, batch.x).data, rtol=1e-12)
    np.testing.assert_allclose(terms.kl, ops.gaussian_kl(mu, logvar).data, rtol=1e-12)

    def loss(*parameters):
        draw = Draw(3, seed=1, dtype=np.float64)
        return model.loss(batch, draw, beta=1.5, rows=3).loss

    assert tv.gradcheck(loss, *model.parameters()) < 1e-6


def test_a_denoising_vae_fills_gaps_and_is_saved(tmp_path):
    """Four values that are the same number: the others tell what is hidden."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(512, 1)), 4, axis=1)
    hidden = x[:128] * (rng.random((128, 4)) > 0.4)
    options = {"hidden": (16,), "likelihood": "gaussian:0.05", "epochs": 30, "random_state": 0}
    errors = {}
    for corruption in (None, "mask:0.4"):
        vae = tv.VAE(2, corruption=corruption, learning_rate=0.01, batch_size=64, **options).fit(x)
        errors[corruption] = np.mean((vae.reconstruct(hidden) - x[:128]) ** 2)
        assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"]
    assert errors["mask:0.4"] < 0.5 * errors[None]
    vae.save(tmp_path / "m")
    again = tv.load(tmp_path / "m")
    assert again.get_params()["corruption"] == "mask:0.4"
    np.testing.assert_array_equal(again.elbo(x), vae.elbo(x))
    tv.VAE(2, corruption=Mask(0.5), **options | {"epochs": 1}).fit(x).save(tmp_path / "m")
    assert tv.load(tmp_path / "m").get_params()["corruption"] == "mask:0.5"
