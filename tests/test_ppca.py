"""A linear-Gaussian VAE is probabilistic PCA, whose best log-likelihood is known exactly."""

import math

import numpy as np

import tinyvae as tv

N, D, Z = 400, 8, 3


class LinearEncoder(tv.nn.Module):
    """q(z | x) = N(V x + c, diag(s)): with s shared by all x, it holds the exact posterior."""

    def __init__(self, rng):
        self.mu = tv.nn.Linear(D, Z, rng=rng)
        self.logvar = tv.Tensor(np.zeros(Z, np.float32), requires_grad=True)

    def __call__(self, x):
        mu = self.mu(x)
        return mu, mu * 0.0 + self.logvar


class LinearDecoder(tv.nn.Module):
    """p(x | z) = N(W z + b, exp(logvar) I), one learned variance."""

    def __init__(self, rng):
        self.mean = tv.nn.Linear(Z, D, rng=rng)
        self.logvar = tv.Tensor(np.zeros(1, np.float32), requires_grad=True)

    def __call__(self, z):
        mean = self.mean(z)
        return tv.ops.concatenate([mean, mean * 0.0 + self.logvar])


def ppca_log_likelihood(x):
    """Mean log-likelihood at the maximum.     Tipping and Bishop 1999, equations 7 and 8."""
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = values[Z:].mean()
    logdet = np.log(values[:Z]).sum() + (D - Z) * math.log(noise)
    return -0.5 * (D * math.log(2 * math.pi) + logdet + D)


def test_linear_vae_reaches_the_exact_log_likelihood_of_ppca():
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((Z, D)) * np.array([[2.0], [1.5], [1.0]])
    x = rng.standard_normal((N, Z)) @ loadings + 0.5 * rng.standard_normal((N, D)) + 1.0
    vae = tv.VAE(
        Z,
        encoder=LinearEncoder(rng),
        decoder=LinearDecoder(rng),
        likelihood="gaussian",
        variance="learned",
        learning_rate="cosine:0.05:0:1500",
        batch_size=100,
        epochs=1500,
        dtype="float64",
        random_state=0,
    ).fit(x)
    exact = ppca_log_likelihood(x)

    decoder = vae.network_.decoder
    mean, raw = decoder.mean, decoder.logvar.data[0]
    variance = math.exp(math.log1p(math.exp(raw + 6)) - 6)  # the likelihood's smooth floor
    covariance = mean.weight.data.T @ mean.weight.data + variance * np.eye(D)
    centred = x - mean.bias.data
    solved = np.linalg.solve(covariance, centred.T).T
    logdet = np.linalg.slogdet(covariance)[1]
    reached = -0.5 * (D * math.log(2 * math.pi) + logdet + (centred * solved).sum(axis=1).mean())
    assert reached <= exact + 1e-9
    assert abs(reached - exact) < 0.02

    # the bound is tight there: the posterior is Gaussian and, at the optimum, diagonal
    bound = np.mean([vae.elbo(x, random_state=seed).mean() for seed in range(200)])
    assert abs(bound - exact) < 0.02
    estimate = vae.log_likelihood(x, samples=100).mean()
    assert abs(estimate - exact) < 0.02
