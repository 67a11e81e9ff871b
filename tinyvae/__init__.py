"""Variational autoencoders on NumPy, with every gradient written by hand and checked.

    import tinyvae as tv

    vae = tv.VAE(latent_dim=20, binarize="dynamic", epochs=10).fit(images)
    vae.sample(64)

The estimator is `VAE`; the parts to compose are `Tensor`, `differentiable`, `nn`, `ops`, `optim`,
`objectives`, `likelihoods`, `schedules`; `gradcheck` checks any of it.
"""

from . import data, estimators, likelihoods, metrics, nn, objectives, ops, optim, schedules, train
from .anomaly import AnomalyDetector
from .checking import GradientError, gradcheck
from .devices import BackendError
from .estimator import VAE, NotFittedError, load
from .tensor import NonFiniteError, Tensor, detect_nonfinite, differentiable, no_grad
from .train import Callback, DivergedError, Interrupted

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AnomalyDetector",
    "BackendError",
    "Callback",
    "DivergedError",
    "GradientError",
    "Interrupted",
    "NonFiniteError",
    "NotFittedError",
    "Tensor",
    "data",
    "detect_nonfinite",
    "differentiable",
    "estimators",
    "gradcheck",
    "likelihoods",
    "load",
    "metrics",
    "nn",
    "no_grad",
    "objectives",
    "ops",
    "optim",
    "schedules",
    "train",
]
