"""models/vae.py: any prior, flows, many samples and IWAE, from the estimator down."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import devices, flows, nn, priors
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli
from tinyvae.models import IWAE, VAE, Parts
from tinyvae.models.vae import IWAENetwork, SampledVAE, VAENetwork
from tinyvae.ops.noise import Draw
from tinyvae.parallel import Shards
from tinyvae.spelling import parse

TINY = {"latent_dim": 3, "hidden": (16,), "batch_size": 16, "random_state": 0}
VARIANTS = {
    "samples": {"model": "vae:3"},
    "sampled KL": {"model": "vae:kl=sampled"},
    "gaussian": {"prior": "gaussian"},
    "mixture": {"prior": "mixture:4"},
    "vamp": {"prior": "vamp:5"},
    "flow prior": {"prior": "flow:coupling:2:hidden=8"},
    "flow": {"flow": "planar:2"},
    "both flows": {"prior": "flow:iaf:1:hidden=8", "flow": "coupling:2:hidden=8"},
    "iwae": {"model": "iwae:5"},
    "dreg": {"model": "iwae:5:dreg", "prior": "vamp:5"},
    "stl": {"model": "iwae:5:stl"},
    "iwae with a flow": {"model": "iwae:3", "flow": "iaf:1:hidden=8"},
}
each = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(scope="module")
def bits():
    """Two kinds of rows, 8 x 8, with noise."""
    rng = np.random.default_rng(0)
    kinds = rng.random((2, 64)) < 0.5
    rows = kinds[rng.integers(0, 2, 160)] ^ (rng.random((160, 64)) < 0.05)
    return rows.astype(np.float32)


@each
def test_it_learns_and_answers_every_question(options, bits, tmp_path):
    model = tv.VAE(**TINY, **options, epochs=12, learning_rate=1e-2).fit(bits)
    first, last = model.history_[0]["elbo"], model.history_[-1]["elbo"]
    assert last > first + 5
    found = model.evaluate(bits)
    assert found.elbo == pytest.approx(-(found.nll + found.kl))
    bound = model.log_likelihood(bits, samples=50).mean()
    assert bound > found.elbo - 0.5
    assert model.encode(bits[:3])[0].shape == (3, 3)
    assert model.reconstruct(bits[:3]).shape == (3, 64)
    assert model.sample(4, random_state=1).shape == (4, 64)
    model.save(tmp_path / "model")
    again = tv.load(tmp_path / "model")
    np.testing.assert_array_equal(again.elbo(bits), model.elbo(bits))
    np.testing.assert_array_equal(again.sample(4, random_state=1), model.sample(4, random_state=1))


def test_the_plain_vae_stays_the_plain_vae(bits):
    """The fused step is for it alone, and nothing else is built."""
    kinds = {
        "vae": VAENetwork, "vae:2": SampledVAE, "vae:kl=sampled": SampledVAE, "iwae": IWAENetwork
    }  # fmt: skip
    for name, kind in kinds.items():
        assert type(tv.VAE(**TINY, model=name, epochs=1).fit(bits).network_) is kind
    assert type(tv.VAE(**TINY, prior="gaussian", epochs=1).fit(bits).network_) is SampledVAE


def test_iwae_logs_its_bound(bits):
    history = tv.VAE(**TINY, model="iwae:20", epochs=2).fit(bits).history_
    assert all(record["bound"] > record["elbo"] for record in history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vae:0"}, "samples must be a whole number >= 1, got 0"),
        ({"model": "vae:kl=close"}, "unknown kl 'close': did you mean 'closed'"),
        ({"model": "iwae:5:drag"}, "unknown gradient 'drag': did you mean 'dreg'"),
        ({"model": "iwae:5:dreg", "flow": "planar:2"}, "gradient='dreg' does not take a flow"),
        ({"prior": "vamp:5", "flow": "planar:2"}, "prior='vamp' does not take a flow"),
        ({"model": "iwae", "free_bits": 0.1}, "model='iwae' does not take free_bits"),
        ({"prior": "mixture", "free_bits": 0.1}, "free_bits needs the closed-form KL"),
        ({"model": "vae:2", "free_bits": 0.1}, "free_bits needs the closed-form KL"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(options, message, bits):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY, **options).fit(bits)


def build(model, *, prior="standard", flow=None, dtype=np.float64, architecture="mlp"):
    flow = None if flow is None else parse(flow, flows.KINDS, "flow")
    shape = (4, 4, 1) if architecture == "conv" else (6,)
    parts = Parts(
        shape, 2, Bernoulli(), architecture, (5,), (2,), "tanh", parse(prior, priors.KINDS, "p"),
        flow, rng=np.random.default_rng(0), dtype=dtype,
    )  # fmt: skip
    return model.build(parts)


def draw(rows, first=0, dtype=np.float64, like=None):
    return Draw(rows, seed=1, step=2, first=first, dtype=dtype, like=like)


CASES = [
    (VAE(), "vamp:3", None), (VAE(2), "flow:coupling:2:hidden=4", "planar:2"),
    (IWAE(3, "dreg"), "vamp:3", None), (IWAE(3), "mixture:2", "iaf:1:hidden=4"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "prior", "flow"), CASES)
def test_the_gradient_does_not_depend_on_the_shards(model, prior, flow, rng):
    net, x = build(model, prior=prior, flow=flow), rng.integers(0, 2, (7, 6)).astype(float)

    def step(network, part):
        rows = x[part]
        terms = network.loss(Batch(rows), draw(len(rows), part.start), beta=0.5, rows=7)
        terms.loss.backward()
        return terms.elbo

    found = []
    for count in (1, 3):
        shards = Shards(net, count)
        elbo = np.concatenate(shards.run(step, 7))
        found.append([elbo, *(tensor.grad for tensor in net.parameters())])
        net.zero_grad()
        shards.close()
    for one, three in zip(*found, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("model", "prior", "flow"), CASES)
def test_on_a_gpu_the_same(model, prior, flow, gpu, rng):
    x, found = rng.integers(0, 2, (5, 6)).astype(np.float64), []
    for device in ("cpu", "cuda"):
        net = build(model, prior=prior, flow=flow).to(device)
        there = devices.move(x, device)
        terms = net.loss(Batch(there), draw(5, like=there), beta=0.5, rows=5)
        terms.loss.backward()
        sample = net.prior.sample(5, draw(5, like=there))
        arrays = (terms.elbo, sample, *(tensor.grad for tensor in net.parameters()))
        found.append([devices.to_host(array) for array in arrays])
    for cpu, cuda in zip(*found, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=1e-9, atol=1e-12)


def test_images_have_pseudo_inputs_that_are_images(rng):
    net = build(VAE(), prior="vamp:3", architecture="conv")
    assert net.prior.u.shape == (3, 4, 4, 1)
    x = rng.integers(0, 2, (5, 4, 4, 1)).astype(float)
    net.loss(Batch(x), draw(5), beta=1.0, rows=5).loss.backward()
    assert np.abs(net.prior.u.grad).max() > 0


def test_the_encoder_and_the_prior_share_its_weights_under_one_name():
    net = build(VAE(), prior="vamp:3")
    names = [name for name, _ in net.named_parameters()]
    assert len(names) == len({*names})
    assert [name for name in names if name.startswith("prior")] == ["prior.u"]


class Encoder(nn.Module):
    """x (B, 64) -> mu, logvar (B, 3)."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.mu, self.logvar = nn.Linear(64, 3, rng=rng), nn.Linear(64, 3, rng=rng)

    def __call__(self, x):
        return self.mu(x), self.logvar(x)


@pytest.mark.parametrize("options", [{"flow": "planar:2"}, {"prior": "vamp:4"}], ids=str)
def test_networks_of_ones_own(options, bits):
    """The flow's context is mu and logvar then."""
    decoder = nn.Sequential(nn.Linear(3, 64, rng=np.random.default_rng(0)))
    model = tv.VAE(3, encoder=Encoder(), decoder=decoder, random_state=0, epochs=10,
                   batch_size=16, learning_rate=1e-2, **options).fit(bits)  # fmt: skip
    assert model.history_[-1]["elbo"] > model.history_[0]["elbo"] + 2


def test_the_code_of_a_flowed_posterior_is_where_the_flow_takes_the_mean(rng):
    net = build(VAE(), flow="planar:2")
    for tensor in net.flow.parameters():
        tensor.data = tensor.data + 0.5 * rng.standard_normal(tensor.shape)
    x = rng.integers(0, 2, (5, 6)).astype(float)
    base, _, context = net.base(x)
    mu, _ = net.encode(x)
    np.testing.assert_array_equal(mu.data, net.flow.forward(base, context)[0].data)
    assert np.abs(mu.data - base.data).max() > 1e-3
    np.testing.assert_array_equal(net.reconstruct(Batch(x)), net.decode(mu).data)


def test_the_weights_are_those_of_the_elbo_in_the_mean(rng):
    """log_weights and evaluation see the same noise: one is minus the other's sum."""
    for prior, flow in (("mixture:2", None), ("standard", "planar:2")):
        net = build(VAE(kl="sampled"), prior=prior, flow=flow)
        batch = Batch(rng.integers(0, 2, (5, 6)).astype(float))
        terms = net.evaluation(batch, draw(5))
        np.testing.assert_allclose(net.log_weights(batch, draw(5)), terms.elbo, rtol=1e-12)
    plain, sampled = build(VAE()), build(VAE(kl="sampled"))
    np.testing.assert_allclose(
        sampled.log_weights(batch, draw(5)),
        VAENetwork.log_weights(plain, batch, draw(5)),
        rtol=1e-9,
    )


def test_a_traverse_goes_over_the_quantiles_of_a_learned_prior(bits):
    model = tv.VAE(**TINY, prior="gaussian", epochs=1).fit(bits)
    model.network_.prior.mu.data[:], model.network_.prior.logvar.data[:] = [2, -1, 0], [0, 1, -2]
    seen = []
    model.decode = lambda z, y=None: seen.append(z) or np.zeros((len(z), 64))
    model.traverse(steps=5)
    z = seen[0].reshape(3, 5, 3)
    np.testing.assert_allclose(z[0, 0, 1:], [-1, 0], atol=0.1)  # the others stay at the mean
    for j, (mean, sigma) in enumerate(((2, 1), (-1, np.exp(0.5)), (0, np.exp(-1)))):
        expected = mean + sigma * np.array([-1.96, 0, 1.96])
        np.testing.assert_allclose(z[j, ::2, j], expected, atol=0.15 * sigma + 0.05)
