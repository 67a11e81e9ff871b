"""models/gan.py: three networks and their three gradients, and `tv.VAE`."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import devices, gradcheck, ops, spelling
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian, Poisson
from tinyvae.models import KINDS, Parts
from tinyvae.ops.noise import Draw
from tinyvae.tensor import Tensor

TEXTS = ["gan:0.7", "gan:0.7:pixels"]
SHAPES = {"mlp": (6,), "conv": (4, 4, 1)}
OPTIONS = {
    "latent_dim": 3, "hidden": (16,), "batch_size": 16, "epochs": 4, "random_state": 2,
    "learning_rate": 3e-3,
}  # fmt: skip


def build(text, likelihood=None, architecture="mlp", dtype=np.float64):
    parts = Parts(
        SHAPES[architecture], 3, likelihood or Bernoulli(), architecture, (5,), (2,), "tanh",
        rng=np.random.default_rng(1), dtype=dtype,
    )  # fmt: skip
    return spelling.parse(text, KINDS, "model").build(parts)


def batch_of(rng, architecture="mlp"):
    return Batch(rng.integers(0, 2, (5, *SHAPES[architecture])).astype(float))


def draw_of(rows, **options):
    return Draw(rows, seed=0, **{"dtype": np.float64} | options)


@pytest.fixture
def bits(rng):
    centre = rng.random((3, 12)) < 0.5
    return (centre[rng.integers(0, 3, 81)] ^ (rng.random((81, 12)) < 0.1)).astype(np.float32)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: tensor.grad for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("learned")], ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_each_network_has_the_gradient_of_its_own_loss(text, likelihood, architecture, rng):
    """Each loss is written down alone here, with the other networks as constants."""
    model, batch = build(text, likelihood, architecture), batch_of(rng, architecture)
    x, draw = batch.x, draw_of(5)
    eps, drawn = draw.normal(3), draw.normal(3)

    def odds(picture):
        return model.discriminator(picture)[1]

    def reconstruction_and_kl(*parameters):
        mu, logvar = model.encode(x)
        output = model.decode(ops.reparameterize(mu, logvar, eps))
        if "pixels" in text:
            distance = likelihood.nll(output, x)
        else:
            seen, made = (model.discriminator.body(a) for a in (x, model.picture(output)))
            distance = ops.sum((seen - made) ** 2, axis=1) / 2
        return ops.mean(distance + 1.3 * ops.gaussian_kl(mu, logvar))

    mu, logvar = model.encode(x)
    z = ops.reparameterize(mu, logvar, eps).data  # what follows trains no encoder

    def decoder_loss(*parameters):
        fooled = [-ops.log(ops.sigmoid(odds(model.picture(model.decode(a))))) for a in (z, drawn)]
        return reconstruction_and_kl() + 0.7 * ops.mean(fooled[0] + fooled[1])

    fakes = [model.picture(model.decode(a)).data for a in (z, drawn)]

    def discriminator_loss(*parameters):
        wrong = [-ops.log(1 - ops.sigmoid(odds(fake))) for fake in fakes]
        return 0.5 * ops.mean(0.5 * (wrong[0] + wrong[1]) - ops.log(ops.sigmoid(odds(x))))

    losses = {
        "encoder": reconstruction_and_kl, "decoder": decoder_loss,
        "discriminator": discriminator_loss,
    }  # fmt: skip
    found = gradients(model, model.loss(batch, draw_of(5), beta=1.3, rows=5).loss)
    for part, loss in losses.items():
        names = [name for name in found if name.startswith(part)]
        own = [tensor for name, tensor in model.named_parameters() if name in names]
        assert gradcheck(loss, *own) < 1e-6
        wanted = gradients(model, loss())
        for name in names:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-8, atol=1e-12)
            assert np.any(found[name] != 0), name


@pytest.mark.parametrize("text", TEXTS)
def test_the_loss_is_the_sum_of_three(text, rng):
    model, batch = build(text), batch_of(rng)
    found = model.loss(batch, draw_of(5), beta=0.3, rows=5)
    log = found.log
    expected = log["reconstruction"] + 0.3 * found.kl + 0.7 * log["decoder_loss"]
    expected += log["discriminator_loss"]
    np.testing.assert_allclose(found.elbo, -expected, rtol=1e-12)
    np.testing.assert_allclose(found.loss.item(), expected.mean(), rtol=1e-12)
    plain = build("vae").loss(batch, draw_of(5), beta=0.3, rows=5)
    np.testing.assert_allclose(found.nll, plain.nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, plain.kl, rtol=1e-12)
    assert np.array_equal(log["reconstruction"], found.nll) == ("pixels" in text)


@pytest.mark.parametrize("text", TEXTS)
def test_shards_add_up_to_the_batch(text, rng):
    model, batch = build(text), batch_of(rng)
    whole = gradients(model, model.loss(batch, draw_of(5), beta=1.0, rows=5).loss)
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 5)):
        draw = draw_of(part.stop - part.start, first=part.start)
        model.loss(batch[part], draw, beta=1.0, rows=5).loss.backward()
    for name, tensor in model.named_parameters():
        np.testing.assert_allclose(tensor.grad, whole[name], rtol=1e-9, atol=1e-12)


def test_the_discriminator_learns_what_is_real(rng):
    """Beside a decoder that hardly moves, D comes to know it."""
    x = np.tile([0.0, 1.0], (200, 6)).astype(np.float32)
    options = OPTIONS | {"learning_rate": 1e-8, "epochs": 30}
    result = tv.VAE(**options, model="gan:learning_rate=0.01").fit(x).evaluate(x)
    assert result.log["d_real"] > 0.9
    assert result.log["d_reconstructed"] < 0.1


@pytest.mark.parametrize("text", TEXTS)
def test_training_lowers_the_reconstruction_and_reports(text, bits):
    vae = tv.VAE(**OPTIONS | {"epochs": 40}, model=text).fit(bits)
    first, last = vae.history_[0], vae.history_[-1]
    assert last["elbo"] > first["elbo"]
    assert last["nll"] < first["nll"]
    assert {"reconstruction", "decoder_loss", "discriminator_loss"} <= last.keys()
    assert vae.evaluate(bits).log.keys() == {"d_real", "d_reconstructed"}
    assert vae.sample(3, random_state=0).shape == (3, 12)
    assert vae.reconstruct(bits[:2]).shape == (2, 12)
    with pytest.raises(ValueError, match="VAEGAN defines no log-likelihood"):
        vae.log_likelihood(bits[:5])


@pytest.mark.parametrize("text", TEXTS)
def test_resume_gives_the_same_bits(text, bits, tmp_path):
    options = OPTIONS | {"model": text}
    whole, path = tv.VAE(**options).fit(bits), tmp_path / "checkpoint.safetensors"
    tv.VAE(**options | {"epochs": 2}).fit(bits, checkpoint=path)
    resumed = tv.VAE(**options).fit(bits, checkpoint=path, resume=True)
    for part in ("network_", "optimizer_"):
        one, same = (getattr(vae, part).state_dict() for vae in (whole, resumed))
        for name, array in one.items():
            np.testing.assert_array_equal(array, same[name], err_msg=name)
    whole.save(tmp_path / "model")
    again = tv.load(tmp_path / "model")
    np.testing.assert_array_equal(whole.sample(4, random_state=1), again.sample(4, random_state=1))
    assert again.evaluate(bits).log == whole.evaluate(bits).log


@pytest.mark.parametrize("text", TEXTS)
def test_the_loss_on_a_gpu(text, rng, gpu):
    model, batch = build(text), batch_of(rng)
    expected = model.loss(batch, draw_of(5), beta=0.7, rows=5)
    wanted = gradients(model, expected.loss)
    model.to("cuda")
    x = devices.move(batch.x, "cuda")
    found = model.loss(Batch(x), draw_of(5, like=x), beta=0.7, rows=5)
    found.loss.backward()
    np.testing.assert_allclose(found.loss.numpy(), expected.loss.numpy(), rtol=1e-10)
    for name, tensor in model.named_parameters():
        np.testing.assert_allclose(devices.to_host(tensor.grad), wanted[name], atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gan:-1"}, "weight must be finite and >= 0, got -1.0"),
        ({"model": "gan:1:pixel"}, "unknown reconstruct 'pixel': did you mean 'pixels'"),
        ({"model": "gan:learning_rate=0"}, "learning_rate must be positive, got 0.0"),
        ({"model": "gan", "likelihood": Poisson()}, "bernoulli, bce or gaussian, not 'poisson'"),
        ({"model": "gan", "flow": "planar:2"}, "model='gan' does not take flow"),
    ],
)
def test_options_out_of_range_are_refused(options, message, bits):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**OPTIONS | options).fit(bits)


def test_pictures_are_means(rng):
    for likelihood in (Bernoulli(), Gaussian("learned"), Gaussian("shared")):
        model = build("gan", likelihood)
        output = model.decode(rng.normal(size=(4, 3)))
        picture = model.picture(output)
        assert isinstance(picture, Tensor)
        np.testing.assert_array_equal(picture.data, likelihood.mean(output.data))
