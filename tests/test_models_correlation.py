"""models/correlation.py: losses, who gets which gradient, the density ratio, and `tv.VAE`."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import Tensor, devices, gradcheck, nn, ops, optim, spelling
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import KINDS, Parts, correlation
from tinyvae.ops.noise import Draw
from tinyvae.parallel import serial, shard_count

TEXTS = ["tc:4", "tc:4:mss", "factor:5:8:2"]
OPTIONS = {
    "latent_dim": 3, "hidden": (12,), "batch_size": 16, "epochs": 4, "random_state": 2,
    "learning_rate": 5e-3,
}  # fmt: skip


def build(text, likelihood=None, dtype=np.float64, **options):
    common = {"hidden": (5,), "channels": (2,), "activation": "tanh", "dtype": dtype}
    parts = Parts((4,), 3, likelihood or Bernoulli(), rng=np.random.default_rng(1),
                  **common | options)  # fmt: skip
    return spelling.parse(text, KINDS, "model").build(parts)


def draw_of(rows, **options):
    return Draw(rows, seed=0, **{"dtype": np.float64} | options)


@pytest.fixture
def batch(rng):
    return Batch(rng.integers(0, 2, (5, 4)).astype(float), total=20)


@pytest.fixture
def bits(rng):
    centre = rng.random((3, 12)) < 0.5
    return (centre[rng.integers(0, 3, 81)] ^ (rng.random((81, 12)) < 0.1)).astype(np.float32)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: tensor.grad for name, tensor in model.named_parameters()}


# --------------------------------------------------------------------------------- the TC-VAE
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("learned")], ids=str)
@pytest.mark.parametrize("text", ["tc:4", "tc:4:mss", "tc:0.5"])
def test_gradient_of_the_whole_loss(text, likelihood, batch):
    model = build(text, likelihood)

    def loss(*parameters):
        return model.loss(batch, draw_of(5), beta=1.3, rows=5).loss

    assert gradcheck(loss, *model.parameters()) < 1e-6


@pytest.mark.parametrize("text", ["tc:1", "tc:1:mss", "factor:0"])
def test_without_a_weight_of_its_own_the_loss_is_the_elbo(text, batch):
    model, plain = build(text), build("vae")
    found = model.loss(batch, draw_of(5), beta=0.7, rows=5)
    expected = plain.loss(batch, draw_of(5), beta=0.7, rows=5)
    grads, wanted = gradients(model, found.loss), gradients(plain, expected.loss)
    for name, gradient in wanted.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.nll, expected.nll)
    np.testing.assert_array_equal(found.kl, expected.kl)


@pytest.mark.parametrize("text", TEXTS)
def test_the_loss_is_the_negative_mean_of_what_is_called_its_bound(text, batch):
    found = build(text).loss(batch, draw_of(5), beta=0.7, rows=5)
    np.testing.assert_allclose(found.loss.item(), -np.mean(found.elbo), rtol=1e-10)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_tc_loss_weighs_one_of_three_terms(beta, batch):
    model = build("tc:4")
    found = model.loss(batch, draw_of(5), beta=beta, rows=5)
    expected = found.nll.mean() + beta * (found.kl.mean() + 3 * found.log["tc"].mean())
    np.testing.assert_allclose(found.loss.item(), expected, rtol=1e-10)
    mu, logvar = (t.data for t in model.encode(batch.x))
    eps = draw_of(5).normal(3)
    z = mu + np.exp(logvar / 2) * eps
    sampled = 0.5 * (z**2 - eps**2 - logvar).sum(axis=1)
    np.testing.assert_allclose(sum(found.log.values()), sampled, rtol=1e-9)


def test_the_size_of_the_data_set_reaches_the_loss(batch):
    model = build("tc:4:mws")
    few, many = (
        model.loss(Batch(batch.x, total=n), draw_of(5), beta=1.0, rows=5).log for n in (5, 5000)
    )
    np.testing.assert_allclose(many["mi"] - few["mi"], np.log(1000), rtol=1e-9)
    alone = model.loss(Batch(batch.x), draw_of(5), beta=1.0, rows=5).log
    np.testing.assert_array_equal(alone["mi"], few["mi"])


# --------------------------------------------------------------------------------- FactorVAE
def test_each_network_of_factor_has_the_gradient_of_its_own_loss(batch):
    """Of the VAE's loss with the discriminator fixed, and of the discriminator's with z fixed."""
    model = build("factor:5:8:2")
    eps, u = (draw := draw_of(5)).normal(3), draw.uniform(3)
    own = [t for n, t in model.named_parameters() if not n.startswith("discriminator")]
    theirs = model.discriminator.parameters()

    def code():
        mu, logvar = model.encode(batch.x)
        return mu, logvar, ops.reparameterize(mu, logvar, eps)

    def vae_loss(*parameters):
        mu, logvar, z = code()
        nll = ops.mean(ops.bernoulli_nll(model.decode(z), batch.x))
        kl = ops.mean(ops.gaussian_kl(mu, logvar) + 5.0 * model.discriminator(z))
        return nll + 0.7 * kl

    def discriminator_loss(*parameters):
        real, other = z[:3], correlation.permuted(z[2:], u[2:])
        real, other = (ops.sigmoid(model.discriminator(a)) for a in (real, other))
        return -0.5 * (ops.mean(ops.log(real)) + ops.mean(ops.log(1 - other)))

    z = code()[2].data
    assert gradcheck(vae_loss, *own) < 1e-6
    assert gradcheck(discriminator_loss, *theirs) < 1e-6
    found = gradients(model, model.loss(batch, draw_of(5), beta=0.7, rows=5).loss)
    expected = gradients(model, vae_loss()), gradients(model, discriminator_loss())
    for name, gradient in found.items():
        wanted = expected[name.startswith("discriminator")][name]
        np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-13, err_msg=name)
        assert np.any(gradient != 0), name


def test_permuting_keeps_the_marginals_and_mixes_the_rows(rng):
    z, u = rng.normal(size=(50, 4)), rng.random((50, 4))
    found = correlation.permuted(z, u)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(z, axis=0))
    places = np.stack([[np.flatnonzero(z[:, j] == v)[0] for v in found[:, j]] for j in range(4)])
    assert all((places[i] != places[j]).mean() > 0.8 for i in range(4) for j in range(i))
    np.testing.assert_array_equal(correlation.permuted(z, np.sort(u, axis=0)), z)


def test_log_odds_estimate_the_total_correlation_of_a_gaussian():
    """Two dimensions with correlation r: TC = -log(1 - r^2) / 2."""
    r, rng = 0.8, np.random.default_rng(0)
    model = build("factor:1:48:2:0.002", dtype=np.float32)
    model.discriminator = correlation.Discriminator(2, 48, 2, rng=rng)
    optimizer = optim.Adam(model.discriminator.parameters(), groups=model.groups())

    def sample(n):
        z = rng.normal(size=(n, 2)).astype(np.float32)
        z[:, 1] = r * z[:, 0] + np.sqrt(1 - r * r) * z[:, 1]
        return z

    found = []
    with serial():
        for _ in range(400):
            z = sample(512)
            found.append(model.discriminator(z).data.mean())
            model.discriminator_loss(z, rng.random(z.shape)).backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = -0.5 * np.log(1 - r * r)  # 0.51; single estimates vary by 0.05
    assert found[0] == pytest.approx(0, abs=0.2)
    assert np.mean(found[200:]) == pytest.approx(expected, abs=0.04)
    z = sample(20_000)
    apart = correlation.permuted(z, rng.random(z.shape))
    assert model.discriminator(apart).data.mean() < 0  # -KL(prod q(z_j) || q(z))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_small_batches(text, rows, batch):
    model = build(text)
    found = model.loss(batch[:rows], draw_of(rows), beta=1.0, rows=rows)
    assert all(np.isfinite(g).all() for g in gradients(model, found.loss).values())


def test_the_discriminator_has_a_learning_rate_of_its_own(bits):
    options = OPTIONS | {"learning_rate": 1e-9, "epochs": 1}
    start = tv.VAE(**options, model="factor:5:8:2:0.01")
    start._start(bits)
    before = {k: v.copy() for k, v in start.network_.state_dict().items()}
    after = tv.VAE(**options, model="factor:5:8:2:0.01").fit(bits).network_.state_dict()
    moved = {k: np.abs(after[k] - before[k]).max() for k in before}
    for name, far in moved.items():
        assert far > 1e-3 if name.startswith("discriminator") else far < 1e-6, name


# --------------------------------------------------------------------------------- as a whole
@pytest.mark.parametrize("text", TEXTS)
def test_training_raises_the_elbo_and_reports(text, bits):
    vae = tv.VAE(**OPTIONS | {"epochs": 30}, model=text).fit(bits)
    first, last = vae.history_[0], vae.history_[-1]
    assert last["elbo"] > first["elbo"] + 0.5
    assert np.isfinite(last["tc"])
    result = vae.evaluate(bits)
    assert result.as_dict()["tc"] == result.log["tc"]
    if text.startswith("tc"):
        assert result.log.keys() == {"mi", "tc", "dwkl"}
    else:
        assert "discriminator_loss" in last
    assert vae.sample(3, random_state=0).shape == (3, 12)
    assert vae.reconstruct(bits[:2]).shape == (2, 12)
    assert vae.log_likelihood(bits[:5], 8).mean() > vae.elbo(bits[:5]).mean() - 0.5


def test_a_weight_on_total_correlation_lowers_it(rng):
    """Two copies of the same bits: nothing but the weight keeps the codes apart."""
    x = np.repeat((rng.random((400, 2)) < 0.5).astype(np.float32), 5, axis=1)
    x = np.concatenate([x, x[:, :5]], axis=1)
    options = OPTIONS | {"epochs": 40, "batch_size": 50, "latent_dim": 4}
    found = [tv.VAE(**options, model=m).fit(x).evaluate(x).log["tc"] for m in ("tc:1", "tc:20")]
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("extra", [{}, {"clip_norm": 0.5}], ids=["plain", "clipped"])
def test_resume_gives_the_same_bits(text, extra, bits, tmp_path):
    options = OPTIONS | {"model": text} | extra
    path = tmp_path / "checkpoint.safetensors"
    whole = tv.VAE(**options).fit(bits)
    tv.VAE(**options | {"epochs": 2}).fit(bits, checkpoint=path)
    resumed = tv.VAE(**options).fit(bits, checkpoint=path, resume=True)
    for name, array in whole.network_.state_dict().items():
        np.testing.assert_array_equal(array, resumed.network_.state_dict()[name], err_msg=name)
    for name, array in whole.optimizer_.state_dict().items():
        np.testing.assert_array_equal(array, resumed.optimizer_.state_dict()[name], err_msg=name)
    assert whole.history_[-1]["tc"] == resumed.history_[-1]["tc"]


@pytest.mark.parametrize("text", TEXTS)
def test_save_and_load(text, bits, tmp_path):
    vae = tv.VAE(**OPTIONS, model=text).fit(bits)
    vae.save(tmp_path / "model")
    again = tv.load(tmp_path / "model")
    assert again.get_params()["model"] == text
    np.testing.assert_array_equal(vae.sample(4, random_state=1), again.sample(4, random_state=1))
    assert again.evaluate(bits).log == vae.evaluate(bits).log


@pytest.mark.parametrize("text", TEXTS)
def test_the_batch_stays_in_one_piece(text):
    assert shard_count(build(text, hidden=(4000,)), 10_000) == 1
    assert shard_count(build("vae", hidden=(4000,)), 10_000) >= 1


@pytest.mark.parametrize("text", TEXTS)
def test_the_loss_on_a_gpu(text, batch, gpu):
    model = build(text)
    expected = model.loss(batch, draw_of(5), beta=0.7, rows=5)
    wanted = gradients(model, expected.loss)
    model.to("cuda")
    x = devices.move(batch.x, "cuda")
    found = model.loss(Batch(x, total=20), draw_of(5, like=x), beta=0.7, rows=5)
    found.loss.backward()
    np.testing.assert_allclose(found.loss.numpy(), expected.loss.numpy(), rtol=1e-10)
    for name, tensor in model.named_parameters():
        np.testing.assert_allclose(devices.to_host(tensor.grad), wanted[name], atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tc:-1"}, "beta must be finite and >= 0, got -1.0"),
        ({"model": "tc:6:mwss"}, "unknown estimator 'mwss': did you mean 'm"),
        ({"model": "factor:nan"}, "gamma must be finite and >= 0, got nan"),
        ({"model": "factor:5:0"}, "units and layers must be at least 1, got 0 and 4"),
        ({"model": "factor:learning_rate=0"}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message, bits):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**OPTIONS | options).fit(bits)


def test_the_cross_entropy_does_not_overflow():
    odds = Tensor(np.array([800.0, -800.0]), True)
    loss = correlation.real_or_not(odds, -odds)
    np.testing.assert_allclose(loss.data, [0, 800])
    ops.sum(loss).backward()
    assert np.isfinite(odds.grad).all()
    assert isinstance(correlation.Discriminator(2, 3, 1).body, nn.Sequential)
