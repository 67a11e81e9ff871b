import numpy as np
import pytest
from sklearn.datasets import load_digits

import tinyvae as tv

TINY = {"latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    """1,797 grey images as rows of 64 numbers in [0, 1]."""
    return (load_digits().data / 16).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(digits):
    return tv.VAE(**TINY | {"likelihood": "bce"}).fit(digits[:300])


def test_shapes_and_repeatability(digits, fitted):
    x = digits[:10]
    mu, logvar = fitted.encode(x)
    assert mu.shape == logvar.shape == (10, 2)
    assert fitted.reparameterize(mu, logvar, 3).shape == (10, 2)
    np.testing.assert_array_equal(
        fitted.reparameterize(mu, logvar, 3), fitted.reparameterize(mu, logvar, 3)
    )
    assert fitted.decode(mu).shape == (10, 64)
    np.testing.assert_array_equal(
        fitted.sample(6, random_state=1), fitted.sample(6, random_state=1)
    )
    assert not np.array_equal(fitted.sample(6, random_state=1), fitted.sample(6, random_state=2))
    np.testing.assert_array_equal(fitted.elbo(x), fitted.elbo(x))
    assert not np.array_equal(fitted.elbo(x), fitted.elbo(x, random_state=9))
    assert fitted.traverse(steps=5).shape == (2, 5, 64)
    assert fitted.traverse(x[0], steps=5).shape == (2, 5, 64)
    assert fitted.sample(2).min() >= 0
    assert fitted.sample(2).max() <= 1


def test_evaluation_does_not_depend_on_the_batch(digits):
    """A row's bits and noise depend on its number alone."""
    vae = tv.VAE(**TINY, binarize="dynamic").fit(digits[:100])
    whole = vae.elbo(digits[:700])  # two batches of 512
    np.testing.assert_allclose(vae.elbo(digits[:300]), whole[:300], rtol=1e-5)


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_a_code_depends_on_its_row_alone(digits, binarize):
    vae = tv.VAE(**TINY, binarize=binarize).fit(digits[:100])
    codes = vae.transform(digits[:10])
    np.testing.assert_allclose(vae.transform(digits[7:8]), codes[7:8], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(vae.transform(digits[:10]), codes)


@pytest.mark.parametrize("spherical", [False, True])
def test_interpolation_starts_and_ends_at_the_reconstructions(digits, fitted, spherical):
    a, b = digits[0], digits[1]
    path = fitted.interpolate(a, b, 7, spherical=spherical)
    assert path.shape == (7, 64)
    ends = fitted.reconstruct(np.stack([a, b]))
    np.testing.assert_allclose(path[[0, -1]], ends, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        fitted.interpolate(a, a, 3, spherical=spherical)[1], ends[0], rtol=1e-4
    )


def test_spherical_interpolation_keeps_the_norm(digits, fitted, monkeypatch):
    ends = np.array([[3.0, 0.0], [0.0, 3.0]], np.float32)
    monkeypatch.setattr(fitted, "encode", lambda X, y: (ends, None), raising=False)
    monkeypatch.setattr(fitted, "_outputs", lambda z, labels: z, raising=False)
    monkeypatch.setattr(fitted, "_mean", lambda outputs: outputs, raising=False)
    z = fitted.interpolate(digits[0], digits[1], 5, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3, rtol=1e-6)


def test_the_importance_weighted_bound_is_above_the_elbo(digits):
    vae = tv.VAE(**TINY | {"binarize": "dynamic"}).fit(digits[:300])
    estimate = vae.log_likelihood(digits[:50], samples=50)
    assert estimate.shape == (50,)
    assert estimate.mean() > vae.elbo(digits[:50]).mean()


def test_unfitted():
    for call in ("encode", "reconstruct", "elbo", "log_likelihood", "transform", "evaluate"):
        with pytest.raises(tv.NotFittedError, match="this VAE is not fitted yet"):
            getattr(tv.VAE(), call)(np.zeros((1, 3)))
    for call in (
        lambda v: v.sample(1),
        lambda v: v.decode(np.zeros((1, 20))),
        lambda v: v.traverse(),
    ):
        with pytest.raises(tv.NotFittedError):
            call(tv.VAE())
    with pytest.raises(tv.NotFittedError):
        tv.VAE().save("nowhere")


def test_other_sizes_after_fit(digits, fitted):
    with pytest.raises(ValueError, match="X has 63 features, but the VAE was fitted on 64"):
        fitted.transform(digits[:5, :63])
    with pytest.raises(ValueError, match=r"z must be \(N, 2\), got shape \(5, 3\)"):
        fitted.decode(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="validation has 10 features"):
        tv.VAE(**TINY | {"likelihood": "bce"}).fit(digits[:20], validation=digits[:5, :10])
    for call in (lambda: fitted.sample(0), lambda: fitted.traverse(steps=1)):
        with pytest.raises(ValueError, match="must be >="):
            call()


def test_pixels_of_uint8_are_scaled_and_bits_are_not(digits):
    pixels = np.round(digits[:100] * 255).astype(np.uint8)
    vae = tv.VAE(**TINY | {"likelihood": "bce"}).fit(pixels)
    assert vae.scale_ == 255
    np.testing.assert_allclose(vae.transform(pixels), vae.transform(pixels / 255.0), rtol=1e-5)
    bits = (digits[:100] > 0.5).astype(np.uint8)
    assert tv.VAE(**TINY).fit(bits).scale_ == 1
    assert tv.VAE(**TINY).fit(bits * 255).scale_ == 255


def test_images_may_come_flat(digits):
    options = TINY | {"architecture": "conv", "channels": (4,), "likelihood": "bce"}
    vae = tv.VAE(**options, image_shape=(8, 8, 1)).fit(digits[:50])
    assert vae.sample(2).shape == (2, 64)
    with pytest.raises(ValueError, match=r"image_shape .* needs 49 values a row, X has 64"):
        tv.VAE(**options, image_shape=(7, 7, 1)).fit(digits[:50])
    with pytest.raises(ValueError, match=r"the conv architecture needs images \(N, H, W, C\)"):
        tv.VAE(**options).fit(digits[:50])
