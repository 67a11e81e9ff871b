"""models/vq.py: straight-through gradients, the codebook's two ways to learn, and the bound."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import Tensor, devices, gradcheck, ops, spelling
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import KINDS, Parts, vq
from tinyvae.models.vq import CodePrior, Quantizer
from tinyvae.ops.noise import Draw

SPELLED = "vq:codes=3:size=2:positions=2:prior=4"


def build(text=SPELLED, shape=(4,), likelihood=None, **options):
    common = {"hidden": (5,), "channels": (2,), "activation": "tanh", "dtype": np.float64}
    parts = Parts(shape, 2, likelihood or Bernoulli(), rng=np.random.default_rng(1),
                  **common | options)  # fmt: skip
    model = spelling.parse(text, KINDS, "model").build(parts)
    rng = np.random.default_rng(2)
    model.quantizer.codebook.data[...] = 0.3 * rng.normal(size=model.quantizer.codebook.shape)
    return model


def draw_of(rows):
    return Draw(rows, seed=0, dtype=np.float64)


def quantizer(rng, codes=4, size=3, **options):
    made = Quantizer(codes, size, rng=rng, dtype=np.float64, **options)
    made.codebook.data[...] = rng.normal(size=(codes, size))
    return made


@pytest.fixture
def batch(rng):
    return Batch(rng.integers(0, 2, (5, 4)).astype(float))


def loss_of(model, batch):
    return model.loss(batch, draw_of(len(batch)), beta=1.0, rows=len(batch)).loss


# ------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("learned")], ids=str)
@pytest.mark.parametrize("update", vq.UPDATES)
def test_gradient_of_decoder_and_prior(update, likelihood, batch):
    """In these the loss is smooth, as it stands."""
    model = build(f"{SPELLED}:update={update}", likelihood=likelihood)
    parameters = [*model.decoder.parameters(), *model.code_prior.parameters()]
    assert gradcheck(lambda *_: loss_of(model, batch), *parameters) < 1e-6


def fixed_loss(model, batch, z0, e0, codes):
    """The loss with the assignment and every stopped gradient held at z0 and e0: smooth.

    The decoder sees z + (e0 - z0), which is e0 here and has the slope 1 in z: straight through.
    """
    z = model.vectors(batch.x)
    seen = ops.reshape(z + (e0 - z0), (len(batch), -1))
    nll = model.likelihood.nll(model.decode(seen), batch.x)
    rate = -model.code_prior.log_prob(codes.reshape(len(batch), -1))
    pull = model.quantizer.commitment * ops.sum((z - e0) ** 2)
    if not model.quantizer.averages:
        pull = pull + ops.sum((ops.embedding(model.quantizer.codebook, codes) - z0) ** 2)
    return (ops.sum(nll + rate) + pull) * (1 / len(batch))


@pytest.mark.parametrize("update", vq.UPDATES)
def test_gradient_of_the_whole_loss_with_the_assignment_fixed(update, batch):
    model = build(f"{SPELLED}:update={update}")
    z0 = model.vectors(batch.x).data
    quantized, codes = model.quantizer(z0)
    assert len(set(codes.tolist())) > 1
    e0 = quantized.data.copy()
    found = loss_of(model, batch)
    fixed = fixed_loss(model, batch, z0, e0, codes)
    np.testing.assert_allclose(found.item(), fixed.item(), rtol=1e-12)
    gradients = []
    for loss in (found, fixed):
        model.zero_grad()
        loss.backward()
        gradients.append({name: t.grad.copy() for name, t in model.named_parameters()})
    for name in gradients[0]:
        np.testing.assert_allclose(
            gradients[0][name], gradients[1][name], rtol=1e-9, atol=1e-12, err_msg=name
        )
    smooth = lambda *_: fixed_loss(model, batch, z0, e0, codes)  # noqa: E731
    assert gradcheck(smooth, *model.parameters()) < 1e-6


def test_straight_through_hands_the_gradient_on_unchanged(rng):
    made, z = quantizer(rng, update="loss"), Tensor(rng.normal(size=(7, 3)), True)
    quantized, codes = made(z)
    np.testing.assert_array_equal(quantized.data, made.codebook.data[codes])
    dout = rng.normal(size=(7, 3))
    quantized.backward(dout)
    np.testing.assert_array_equal(z.grad, dout)
    assert made.codebook.grad is None  # it learns by its own loss


def test_the_two_halves_of_the_loss_pull_one_side_each(rng):
    """|sg(z) - e|^2 moves codes alone, commitment |z - sg(e)|^2 vectors alone."""
    made, z = quantizer(rng, update="loss", commitment=0.25), rng.normal(size=(7, 3))
    vectors = Tensor(z, True)
    quantized, codes = made(vectors)
    ops.sum(made.loss(vectors, codes)).backward()
    gap = z - quantized.data
    np.testing.assert_allclose(vectors.grad, 2 * 0.25 * gap, rtol=1e-12)
    expected = np.zeros_like(made.codebook.data)
    np.add.at(expected, codes, -2 * gap)
    np.testing.assert_allclose(made.codebook.grad, expected, rtol=1e-12)
    averaged = quantizer(rng, update="ema", commitment=0.25)
    assert averaged.parameters() == []


# ------------------------------------------------------------------------------- moving averages
def test_averages_follow_their_recursion(rng):
    """Counts and sums after n steps are the weighted sums of all batches, in closed form."""
    made, decay = quantizer(rng, update="ema", decay=0.8, restart=0.0), 0.8
    made.counts.data[...] = [1.0, 2.0, 3.0, 4.0]
    made.sums.data[...] = rng.normal(size=(4, 3))
    counts, sums = 0.8**5 * made.counts.data, 0.8**5 * made.sums.data
    for t in range(5):
        z, codes = rng.normal(size=(20, 3)), rng.integers(0, 4, 20)
        for k in range(4):
            counts[k] += 0.2 * decay ** (4 - t) * (codes == k).sum()
            sums[k] += 0.2 * decay ** (4 - t) * z[codes == k].sum(axis=0)
        made.learn(z, codes, rng.random(20))
    np.testing.assert_allclose(made.counts.data, counts, rtol=1e-12)
    np.testing.assert_allclose(made.sums.data, sums, rtol=1e-12)
    np.testing.assert_allclose(made.codebook.data, sums / counts[:, None], rtol=1e-4)


def test_averages_settle_at_the_means_of_clusters(rng):
    """k-means on three heaps finds their centres."""
    centres = np.array([[5.0, 0], [-5, 0], [0, 5]])
    made = quantizer(rng, codes=3, size=2, update="ema", decay=0.9)
    for _ in range(200):
        z = centres[rng.integers(0, 3, 90)] + 0.1 * rng.normal(size=(90, 2))
        _, codes = made(z)
        made.learn(z, codes, rng.random(90))
    found = made.codebook.data
    gaps = np.linalg.norm(found[:, None] - centres, axis=2)
    np.testing.assert_array_equal(np.sort(gaps.argmin(axis=0)), [0, 1, 2])
    assert gaps.min(axis=0).max() < 0.1


@pytest.mark.parametrize("update", vq.UPDATES)
def test_dead_codes_start_anew_as_vectors_of_the_batch(update, rng):
    made = quantizer(rng, update=update, decay=0.5, restart=0.1)
    z, codes = 10 + rng.normal(size=(20, 3)), np.zeros(20, np.int64)
    made.learn(z, codes, rng.random(20))  # the first step: all of them
    assert all((z == code).all(axis=1).any() for code in made.codebook.data)
    made.codebook.data[1] = 1000.0  # nobody will choose it
    for step in range(8):
        _, codes = made(z)
        assert (codes == 1).any() == (made.codebook.data[1] < 1000).all(), step
        made.learn(z, codes, rng.random(20))
    assert (made.codebook.data[1] < 1000).all()
    _, codes = made(z)
    assert vq.perplexity(codes, 4) > 2


def test_without_restart_nothing_is_replaced(rng):
    made = quantizer(rng, update="loss", restart=0.0)
    before = made.codebook.data.copy()
    for _ in range(50):
        made.learn(rng.normal(size=(20, 3)), np.zeros(20, np.int64), rng.random(20))
    np.testing.assert_array_equal(made.codebook.data, before)


def test_more_dead_codes_than_vectors(rng):
    made = quantizer(rng, codes=9)
    z = rng.normal(size=(2, 3))
    made.learn(z, np.zeros(2, np.int64), rng.random(2))
    assert {tuple(row) for row in made.codebook.data} == {tuple(row) for row in z}


def test_perplexity_counts_the_codes_in_use():
    assert math.isclose(vq.perplexity(np.arange(8), 8), 8)
    assert math.isclose(vq.perplexity(np.zeros((3, 4), int), 8), 1)
    assert math.isclose(vq.perplexity(np.array([0, 0, 5, 5]), 8), 2)


# ------------------------------------------------------------------------- the prior, the bound
def all_codes(K, P):
    return np.array(list(itertools.product(range(K), repeat=P)))


def test_the_prior_sums_to_one_and_samples_what_it_says(rng):
    prior = CodePrior(3, 2, 4, rng=rng, dtype=np.float64)
    prior.head.weight.data *= 5
    codes = all_codes(3, 2)
    p = np.exp(prior.log_prob(codes).data)
    assert math.isclose(p.sum(), 1, rel_tol=1e-12)
    drawn = prior.sample(20_000, draw_of(20_000))
    share = np.array([(drawn == row).all(axis=1).mean() for row in codes])
    assert (np.abs(share - p) <= 4.5 * np.sqrt(p / len(drawn))).all()
    assert p.max() > 2 * p.min()


def test_the_prior_looks_back_only(rng):
    """Summed over the last code it is the same prior over one position less."""
    prior, shorter = (CodePrior(3, P, 4, rng=rng, dtype=np.float64) for P in (4, 3))
    state = prior.state_dict()
    shorter.load_state_dict(state | {"places.weight": state["places.weight"][:3]})
    codes = all_codes(3, 4)
    p = np.exp(prior.log_prob(codes).data).reshape(27, 3).sum(axis=1)
    np.testing.assert_allclose(np.log(p), shorter.log_prob(all_codes(3, 3)).data, rtol=1e-10)


def test_the_bound_is_below_the_exact_likelihood(batch):
    """log p(x) by a sum over all K^P codes."""
    model = build()
    found = model.evaluation(batch, draw_of(5))
    codes = all_codes(3, 2)
    rows = []
    for row in codes:
        z = np.repeat(model.quantizer.codebook.data[row].reshape(1, -1), len(batch), axis=0)
        nll = model.likelihood.nll(model.decode(z), batch.x).data
        rows.append(model.code_prior.log_prob(row[None]).data - nll)
    exact = np.logaddexp.reduce(np.array(rows), axis=0)
    assert (found.elbo < exact).all()
    own = model.quantizer(model.vectors(batch.x))[1].reshape(5, 2)
    at = [int(np.flatnonzero((codes == row).all(axis=1))[0]) for row in own]
    np.testing.assert_allclose(found.elbo, np.array(rows)[at, np.arange(5)], rtol=1e-10)
    np.testing.assert_array_equal(model.log_weights(batch, draw_of(5)), found.elbo)


def test_codes_survive_the_way_through_encode(batch):
    model = build()
    mu, logvar = model.encode(batch.x)
    assert mu.shape == (5, 4)
    assert np.isneginf(logvar.data).all()
    again, _ = model.quantizer(ops.reshape(mu, (-1, 2)))
    np.testing.assert_array_equal(again.data.reshape(5, 4), mu.data)


def test_convolutions_make_a_grid_of_codes(rng):
    model = build("vq:codes=5:size=3:prior=4", (12, 8, 2), architecture="conv", channels=(3, 4))
    x = rng.integers(0, 2, (2, 12, 8, 2)).astype(float)
    assert model.code_prior.positions == 3 * 2
    assert model.vectors(x).shape == (2 * 6, 3)
    assert model.decode(model.encode(x)[0]).shape == x.shape
    assert model.generate(4, draw_of(4)).shape == (4, 12, 8, 2)
    assert model.couples()  # the codebook's averages are over whole batches


@pytest.mark.parametrize("update", vq.UPDATES)
def test_the_same_on_a_gpu(update, gpu, batch):
    first = build(f"{SPELLED}:update={update}")

    def results(device):
        model = copy.deepcopy(first).to(device)
        there = Batch(devices.move(batch.x, device))
        noise = [Draw(5, seed=seed, dtype=np.float64, like=there.x) for seed in range(3)]
        terms = model.loss(there, noise[0], beta=1.0, rows=5)
        terms.loss.backward()
        found = [terms.elbo, *(t.grad for t in model.parameters())]
        model.after_step(terms)
        found += [model.log_weights(there, noise[1]), model.generate(5, noise[2])]
        found += [model.reconstruct(there), *model.state_dict().values()]
        return [devices.to_host(a) for a in found]

    for one, other in zip(results("cuda"), results("cpu"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------- as text
def test_wrong_options_are_named():
    for text, message in [
        ("vq:codes=0", "codes must be at least 1, got 0"),
        ("vq:update=ma", "unknown update 'ma'"),
        ("vq:decay=1", r"decay must be in \[0, 1\), got 1.0"),
        ("vq:restart=2", r"restart must be in \[0, 1\), got 2.0"),
        ("vq:commitment=-1", "commitment must be finite and >= 0, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            spelling.parse(text, KINDS, "model")
    with pytest.raises(ValueError, match="model='vq' does not take flow"):
        tv.VAE(model="vq", flow="planar:2").fit(np.zeros((4, 3)))


# --------------------------------------------------------------------------------- through VAE
OPTIONS = {"hidden": (64,), "learning_rate": 5e-3, "batch_size": 50, "random_state": 0}


def digits():
    return (tv.data.load("digits").train[:400] > 0.5).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("vq:codes=16:size=4:positions=4", {}),
        ("vq:codes=16:size=4:positions=4:update=loss", {}),
        ("vq:codes=16:size=4", {"architecture": "conv", "channels": (16, 16)}),
    ],
)
def test_training_raises_the_bound_and_the_perplexity(text, options, tmp_path):
    x = digits()
    vae = tv.VAE(model=text, epochs=1, **OPTIONS | options).fit(x)
    first = vae.evaluate(x)
    for _ in range(15):
        vae.partial_fit(x)
    last = vae.evaluate(x)
    assert last.elbo > first.elbo + 5
    perplexities = [record["perplexity"] for record in vae.history_]
    assert perplexities[-1] > max(8, min(perplexities[:4]))
    assert perplexities[-1] > min(perplexities) + 2
    assert vae.reconstruct(x[:3]).shape == x[:3].shape
    assert vae.sample(4, random_state=1).shape == (4, *x.shape[1:])
    assert vae.transform(x[:3]).shape == (3, vae.network_.latent_dim)
    np.testing.assert_allclose(vae.log_likelihood(x[:50], 2), vae.elbo(x[:50]), rtol=1e-5)
    vae.save(tmp_path / "model.safetensors")
    again = tv.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.sample(4, random_state=1), vae.sample(4, random_state=1))
    assert again.evaluate(x) == last


@pytest.mark.parametrize("update", vq.UPDATES)
def test_a_resumed_run_is_the_uninterrupted_one(update, tmp_path):
    """Codebook, averages and the number of steps are in the checkpoint, to the bit."""
    text, x = f"vq:codes=16:size=4:positions=4:update={update}", digits()
    path = tmp_path / "checkpoint.safetensors"
    whole = tv.VAE(model=text, epochs=3, **OPTIONS).fit(x)
    tv.VAE(model=text, epochs=2, **OPTIONS).fit(x, checkpoint=path)
    resumed = tv.VAE(model=text, epochs=3, **OPTIONS).fit(x, checkpoint=path, resume=True)
    state = whole.network_.state_dict()
    assert "quantizer.counts" in state
    for name, array in resumed.network_.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_recording_changes_nothing(monkeypatch):
    """What the codebook learns from is made outside the kernels: such a step is not recorded."""
    text, x = "vq:codes=16:size=4:positions=4", digits()
    vae = tv.VAE(model=text, epochs=1, **OPTIONS).fit(x)
    monkeypatch.setattr(tv.train, "MOST_RECORDED", 0)
    plain = tv.VAE(model=text, epochs=1, **OPTIONS).fit(x)
    for name, array in vae.network_.state_dict().items():
        np.testing.assert_array_equal(array, plain.network_.state_dict()[name], err_msg=name)
