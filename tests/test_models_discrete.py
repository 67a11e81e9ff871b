"""models/discrete.py: losses against sums over all states, and through `tv.VAE`."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import Tensor, devices, estimators, gradcheck, ops, spelling
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import KINDS, Parts
from tinyvae.ops.noise import Draw

KIND_NAMES = ["gumbel:2:3", "gumbel:2:3:hard=true", "categorical:3:2", "bernoulli:3:vimco:2",
              "bernoulli:3:nvil", "bernoulli:3:mean", "bernoulli:3:reinforce"]  # fmt: skip


def build(text, likelihood=None, **options):
    common = {"hidden": (5,), "channels": (2,), "activation": "tanh", "dtype": np.float64}
    parts = Parts((4,), 2, likelihood or Bernoulli(), rng=np.random.default_rng(1),
                  **common | options)  # fmt: skip
    return spelling.parse(text, KINDS, "model").build(parts)


def sharper(model, rng):
    """The same model with larger weights: posteriors far from uniform."""
    for tensor in model.parameters():
        tensor.data *= 4
    return model


def draw_of(rows, seed=0):
    return Draw(rows, seed=seed, dtype=np.float64)


class Given:
    """Noise that makes the latents what a test wants."""

    def __init__(self, u):
        self.u = u

    def uniform(self, *shape):
        return self.u.reshape(len(self.u), *shape)


@pytest.fixture
def batch(rng):
    return Batch(rng.integers(0, 2, (3, 4)).astype(float))


def states_of(model):
    shape = model.latents.shape
    if len(shape) == 1:
        return estimators.enumerate_bits(*shape, np.float64)
    return estimators.enumerate_classes(*shape, np.float64)


def enumerated(model, batch):
    """log q(z | x) and log p(x, z) of all states, each (S, B), as tensors."""
    states = states_of(model)
    log_q = model.latents.log_prob(model.logits(batch.x), states[:, None])
    columns = [model.nll(np.repeat(s[None], len(batch), axis=0), batch) for s in states]
    nll = ops.concatenate([ops.reshape(c, (1, -1)) for c in columns], axis=0)
    return log_q, model.latents.log_uniform - nll


def exact_elbo(model, batch, beta=1.0):
    log_q, log_p = enumerated(model, batch)
    nll = model.latents.log_uniform - log_p
    kl = log_q - model.latents.log_uniform
    return estimators.expectation(log_q, -nll - beta * kl)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    grads = [np.zeros(t.shape) if t.grad is None else t.grad for t in model.parameters()]
    model.zero_grad()
    return np.concatenate([grad.ravel() for grad in grads])


# ------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("learned")], ids=str)
@pytest.mark.parametrize("text", ["gumbel:2:3", "categorical:3:2"])
def test_gradient_of_the_whole_loss(text, likelihood, batch):
    model = build(text, likelihood)

    def loss(*parameters):
        return model.loss(batch, draw_of(3), beta=1.3, rows=5).loss

    assert gradcheck(loss, *model.parameters()) < 1e-6


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_enumerated_loss_is_the_exact_elbo(beta, batch, rng):
    model = sharper(build("categorical:3:2"), rng)
    found = model.loss(batch, None, beta=beta, rows=3)
    expected = exact_elbo(model, batch, beta)
    np.testing.assert_allclose(found.elbo, expected.data, rtol=1e-10)
    np.testing.assert_allclose(found.loss.item(), -expected.data.mean(), rtol=1e-10)
    np.testing.assert_allclose(
        gradient(model, found.loss), gradient(model, ops.mean(-expected)), rtol=1e-8, atol=1e-12
    )


def noise_for(model, x, states):
    """u that makes `sample` give these bits: below or above every probability."""
    return np.where(states > 0, 1e-12, 1 - 1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("name", ["nvil", "mean", "reinforce"])
def test_the_score_function_loss_has_the_gradient_of_the_elbo_in_the_mean(name, beta, batch, rng):
    """Summed over all bits, weighted by q: exact, for one row at a time."""
    model = sharper(build(f"bernoulli:3:{name}"), rng)
    if model.baseline is not None:
        model.baseline.update(np.array([-3.0]))
    row = batch[:1]
    expected = gradient(model, -ops.sum(exact_elbo(model, row, beta)))
    found = 0.0
    q = np.exp(enumerated(model, row)[0].data[:, 0])
    own = sum(t.size for t in model.parameters()) - sum(
        t.size for t in (model.baseline.parameters() if model.baseline else [])
    )
    for probability, state in zip(q, states_of(model), strict=True):
        given = Given(noise_for(model, row.x, state[None]))
        found = found + probability * gradient(
            model, model.loss(row, given, beta=beta, rows=1).loss
        )
    np.testing.assert_allclose(found[:own], expected[:own], rtol=1e-8, atol=1e-10)


def test_the_vimco_loss_has_the_gradient_of_the_bound_in_the_mean(batch, rng):
    model, row = sharper(build("bernoulli:3:vimco:2"), rng), batch[:1]
    log_q, log_p = enumerated(model, row)
    pairs = np.array(list(itertools.product(range(8), repeat=2)))  # (P, 2)
    log_w = ops.reshape((log_p - log_q)[pairs.ravel(), 0], (-1, 2))
    q = ops.exp(ops.sum(ops.reshape(log_q[pairs.ravel(), 0], (-1, 2)), axis=1))
    expected = gradient(model, -ops.sum(q * ops.log_mean_exp(log_w)))
    found, bound = 0.0, 0.0
    for weight, pair in zip(q.data, pairs, strict=True):
        given = Given(noise_for(model, row.x, states_of(model)[pair][None]))
        terms = model.loss(row, given, beta=1.0, rows=1)
        np.testing.assert_allclose(terms.nll + terms.kl, -terms.elbo, rtol=1e-12)
        bound += weight * terms.elbo[0]
        found = found + weight * gradient(model, terms.loss)
    np.testing.assert_allclose(bound, (q.data * ops.log_mean_exp(log_w).data).sum(), rtol=1e-10)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_nvils_network_learns_to_guess_f(batch):
    """Its part of the gradient is that of (f - mean - network(x))^2, and of nothing else."""
    model = build("bernoulli:3:nvil")
    model.loss(batch, draw_of(3), beta=1.0, rows=3).loss.backward()
    found = [tensor.grad.copy() for tensor in model.baseline.parameters()]
    f = -model.loss(batch, draw_of(3), beta=1.0, rows=3).nll
    model.zero_grad()
    ops.mean((model.baseline(batch.x) - f) ** 2).backward()
    for grad, tensor in zip(found, model.baseline.parameters(), strict=True):
        np.testing.assert_allclose(grad, tensor.grad, rtol=1e-10)


@pytest.mark.parametrize("text", KIND_NAMES)
def test_shards_add_up_to_the_whole(text, batch):
    """Noise and loss of two parts are those of the batch."""
    model = build(text)
    whole = model.loss(batch, draw_of(3), beta=0.7, rows=3)
    parts = [
        model.loss(batch[part], Draw(part.stop - part.start, seed=0, first=part.start,
                                     dtype=np.float64), beta=0.7, rows=3)
        for part in (slice(0, 1), slice(1, 3))
    ]  # fmt: skip
    np.testing.assert_allclose(sum(p.loss.item() for p in parts), whole.loss.item(), rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([p.nll for p in parts]), whole.nll, rtol=1e-12)


# ----------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("text", ["gumbel:2:3", "categorical:3:2", "bernoulli:3:nvil"])
def test_evaluation_is_the_exact_elbo_in_the_mean(text, batch, rng):
    """Hard samples, also where training relaxes them."""
    model, n = sharper(build(text), rng), 20_000
    many = Batch(np.repeat(batch.x[:1], n, axis=0))
    found = model.evaluation(many, draw_of(n)).elbo
    exact = exact_elbo(model, batch[:1]).data
    assert abs(found.mean() - exact[0]) <= 4.5 * found.std() / math.sqrt(n) + 1e-9


@pytest.mark.parametrize("text", ["gumbel:2:3", "categorical:3:2", "bernoulli:3:vimco:2"])
def test_the_weights_average_to_the_likelihood(text, batch, rng):
    model, n = sharper(build(text), rng), 20_000
    many = Batch(np.repeat(batch.x[:1], n, axis=0))
    w = np.exp(model.log_weights(many, draw_of(n)))
    _, log_p = enumerated(model, batch[:1])
    exact = np.exp(log_p.data).sum()
    assert abs(w.mean() - exact) <= 4.5 * w.std() / math.sqrt(n)


def test_the_summed_model_reports_the_exact_likelihood(batch, rng):
    model = sharper(build("categorical:3:2"), rng)
    _, log_p = enumerated(model, batch)
    found = model.evaluation(batch, draw_of(3))
    expected = np.log(np.exp(log_p.data).sum(axis=0))
    np.testing.assert_allclose(found.log["log_likelihood"], expected, rtol=1e-10)
    assert (found.elbo <= expected).all()


def test_one_class_needs_no_code(batch):
    """C = 1: the KL is zero and the bound is the likelihood."""
    found = build("categorical:1").evaluation(batch, draw_of(3))
    np.testing.assert_array_equal(found.kl, 0)
    np.testing.assert_allclose(found.elbo, found.log["log_likelihood"], rtol=1e-12)


def test_codes_are_probabilities(batch):
    model = build("gumbel:2:3")
    mean, logvar = model.encode(batch.x)
    q = mean.data.reshape(3, 2, 3)
    np.testing.assert_allclose(q.sum(axis=2), 1)
    np.testing.assert_allclose(np.exp(logvar.data), (q * (1 - q)).reshape(3, 6))
    bits, _ = build("bernoulli:3").encode(batch.x)
    assert bits.shape == (3, 3)


def test_straight_through_trains_on_one_hot_codes(batch):
    """At once the value that hard evaluation gives, at the same noise."""
    model = build("gumbel:2:3:hard=true")
    found = model.loss(batch, draw_of(3), beta=1.0, rows=3)
    np.testing.assert_allclose(found.nll, model.evaluation(batch, draw_of(3)).nll, rtol=1e-10)


def test_the_temperature_falls_to_its_floor(batch):
    model = build("gumbel:2:3:temperature=2:final=0.5:rate=0.1")
    found = []
    for _ in range(20):
        terms = model.loss(batch, draw_of(3), beta=1.0, rows=3)
        found.append(terms.log["temperature"])
        model.after_step(terms)
    expected = np.maximum(0.5, 2 * np.exp(-0.1 * np.arange(20)))
    np.testing.assert_allclose(found, expected)
    assert build("gumbel:rate=0").temperature == 1.0


@pytest.mark.parametrize("text", KIND_NAMES)
def test_the_same_on_a_gpu(text, gpu, batch):
    first = build(text)

    def results(device):
        model = copy.deepcopy(first).to(device)
        there = Batch(devices.move(batch.x, device))
        noise = [Draw(3, seed=seed, dtype=np.float64, like=there.x) for seed in range(4)]
        terms = model.loss(there, noise[0], beta=1.0, rows=3)
        terms.loss.backward()
        model.after_step(terms)
        found = [terms.elbo, model.log_weights(there, noise[1]), model.generate(3, noise[2])]
        found += [model.evaluation(there, noise[3]).elbo, model.reconstruct(there)]
        found += [code.data for code in model.encode(there.x)]
        found += [t.grad for t in model.parameters()]
        return [devices.to_host(a) for a in found]

    for one, other in zip(results("cuda"), results("cpu"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------- as text
def test_wrong_options_are_named():
    for text, message in [
        ("gumbel:0", "latents must be at least 1, got 0"),
        ("gumbel:2:3:temperature=0.1", "temperature must be finite, and at least final > 0"),
        ("gumbel:2:3:rate=-1", "rate must be finite and >= 0, got -1.0"),
        ("categorical:10:20", r"10\^20 states are too many to sum over"),
        ("bernoulli:20:vimko", "unknown estimator 'vimko': did you mean 'vimco'"),
        ("bernoulli:20:vimco:1", "vimco needs samples >= 2, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            spelling.parse(text, KINDS, "model")


@pytest.mark.parametrize("options", [{"flow": "planar:2"}, {"free_bits": 0.1}], ids=str)
@pytest.mark.parametrize("text", ["gumbel:2:3", "categorical:3", "bernoulli:3"])
def test_what_does_not_go_with_it_is_refused(text, options):
    with pytest.raises(ValueError, match=f"model='{text.split(':')[0]}' does not take"):
        tv.VAE(model=text, **options).fit(np.zeros((4, 3)))


# --------------------------------------------------------------------------------- through VAE
def digits():
    return (tv.data.load("digits").train[:400] > 0.5).astype(np.float32)


OPTIONS = {"hidden": (64,), "learning_rate": 1e-2, "batch_size": 50, "random_state": 0}
TRAINED = ["gumbel:6:4:rate=3e-3", "gumbel:6:4:hard=true", "categorical:8", "bernoulli:8:vimco:5",
           "bernoulli:8:nvil", "bernoulli:8:mean", "bernoulli:8:reinforce"]  # fmt: skip


@pytest.mark.parametrize("text", TRAINED)
def test_training_raises_the_bound(text, tmp_path):
    x = digits()
    vae = tv.VAE(model=text, epochs=1, **OPTIONS).fit(x)
    first = vae.evaluate(x).elbo
    for _ in range(11):
        vae.partial_fit(x)
    last = vae.evaluate(x)
    assert last.elbo > first + 1
    assert np.mean(vae.log_likelihood(x[:100], 20)) > first
    assert vae.reconstruct(x[:3]).shape == x[:3].shape
    assert vae.sample(4, random_state=1).shape == (4, *x.shape[1:])
    assert vae.transform(x[:3]).shape == (3, vae.network_.latent_dim)
    assert vae.decode(vae.transform(x[:3])).shape == x[:3].shape
    vae.save(tmp_path / "model.safetensors")
    again = tv.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.sample(4, random_state=1), vae.sample(4, random_state=1))
    assert again.evaluate(x) == last


@pytest.mark.parametrize("text", ["gumbel:6:4:rate=3e-3", "bernoulli:8:nvil"])
def test_a_resumed_run_is_the_uninterrupted_one(text, tmp_path):
    """The temperature's step and the baseline's mean are in the checkpoint."""
    x, path = digits(), tmp_path / "checkpoint.safetensors"
    whole = tv.VAE(model=text, epochs=3, **OPTIONS).fit(x)
    tv.VAE(model=text, epochs=2, **OPTIONS).fit(x, checkpoint=path)
    resumed = tv.VAE(model=text, epochs=3, **OPTIONS).fit(x, checkpoint=path, resume=True)
    state = whole.network_.state_dict()
    assert {name for name, _ in whole.network_.named_buffers()}
    for name, array in resumed.network_.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize("text", ["gumbel:6:4", "categorical:4", "bernoulli:8:vimco:3"])
def test_recording_changes_nothing(text, monkeypatch):
    x = digits()
    vae = tv.VAE(model=text, epochs=1, **OPTIONS).fit(x)
    monkeypatch.setattr(tv.train, "MOST_RECORDED", 0)
    plain = tv.VAE(model=text, epochs=1, **OPTIONS).fit(x)
    for name, array in vae.network_.state_dict().items():
        np.testing.assert_array_equal(array, plain.network_.state_dict()[name], err_msg=name)


def test_constant_states_are_not_saved():
    model = build("categorical:3")
    assert isinstance(model.states, Tensor)
    assert "states" not in model.state_dict()
