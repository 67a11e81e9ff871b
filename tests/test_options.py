"""The hyperparameters: stored unchanged, checked before any work, explained on the command line."""

import numpy as np
import pytest
from sklearn.base import clone

import tinyvae as tv
from tinyvae.options import HELP, flag, spell

TINY = {"latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}
BITS = (np.random.default_rng(0).random((20, 9)) < 0.5).astype(np.float32)


def test_parameters_are_stored_unchanged():
    hidden = [3, 4]
    vae = tv.VAE(7, hidden=hidden, beta=2.0)
    assert vae.hidden is hidden
    assert vae.get_params()["latent_dim"] == 7
    assert repr(vae) == "VAE(latent_dim=7, hidden=[3, 4], beta=2.0)"
    assert clone(vae).get_params() == vae.get_params()
    assert vae.set_params(beta=1.0) is vae
    with pytest.raises(ValueError, match="unknown parameter 'bata': did you mean 'beta'"):
        vae.set_params(bata=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1, got 0"),
        ({"latent_dim": 2.5}, "latent_dim must be a whole number >= 1, got 2.5"),
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"batch_size": -1}, "batch_size must be a whole number >= 1"),
        ({"hidden": (8, 0)}, "hidden must be whole numbers >= 1"),
        ({"hidden": 400}, "hidden must be whole numbers >= 1, got 400"),
        ({"beta": -1.0}, "beta must be finite and >= 0"),
        ({"free_bits": float("nan")}, "free_bits must be finite and >= 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": "cosin:1:0:3"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"likelihood": "bernouli"}, "unknown likelihood 'bernouli': did you mean 'bernoulli'"),
        ({"architecture": "cnn"}, "unknown architecture 'cnn'"),
        ({"activation": "rellu"}, "unknown activation 'rellu': did you mean 'relu'"),
        ({"binarize": "dynamc"}, "unknown binarize 'dynamc': did you mean 'dynamic'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "fp16"}, "unknown precision 'fp16': did you mean 'bf16'"),
        ({"precision": "tf32"}, "precision='tf32' needs a GPU: the CPU multiplies float32 exactly"),
        ({"likelihood": "gaussian", "variance": -1.0}, "variance must be positive"),
        ({"likelihood": "gaussian", "variance": "learnd"}, "did you mean 'learned'"),
        ({"random_state": "seven"}, "random_state must be None, an int"),
    ],
)
def test_unsuitable_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY | options).fit(BITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free_bits": "total:1", "model": "tc"}, "does not take free_bits of groups: it weighs"),
        ({"kl_schedule": "capacity", "model": "tc"}, "does not take a capacity as kl_schedule: it"),
        ({"kl_schedule": "capacity", "model": "cvae:true"}, "does not take free_bits or a capac"),
        ({"latent_dim": 5, "model": "vq"}, "does not take latent_dim: .* vq:size=16:positions=8"),
        ({"kl_schedule": "capacity", "free_bits": 1.0}, "both say what the KL may cost"),
        ({"kl_schedule": "capacity", "prior": "mixture:3"}, "a capacity needs the closed-form KL"),
        ({"free_bits": "total:1", "model": "vae:3"}, "free_bits needs the closed-form KL"),
    ],
)
def test_costs_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        tv.VAE(**TINY | {"likelihood": "bce"} | options).fit(BITS, np.zeros(20, int))


def test_a_hyperparameter_is_read_as_it_is_spelled():
    """What --help shows as a default can be typed."""
    defaults = tv.VAE().get_params()
    assert set(defaults) - set(HELP) == {"encoder", "decoder"}
    for name, said in HELP.items():
        if said.parse is not None:
            typed = said.parse(spell(defaults[name])) if defaults[name] is not None else None
            as_list = isinstance(typed, list)
            assert (tuple(typed) if as_list else typed) == defaults[name], name


@pytest.mark.parametrize(
    ("value", "text"),
    [((400, 200), "400,200"), (1.0, "1"), (1e-3, "0.001"), (None, "none"), ("relu", "relu")],
)
def test_spelling(value, text):
    assert spell(value) == text


def test_flags():
    assert flag("latent_dim") == "--latent-dim"
    assert flag("random_state") == "--seed"
    assert flag("no_validation") == "--no-validation"
