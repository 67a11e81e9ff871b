"""Every kind of model and part on the same data: a table, and a sheet of samples.

    python examples/zoo.py [--only vae iwae] [--epochs 60] [--data-dir FOLDER]      writes zoo.png

On the 8 x 8 digits that come with scikit-learn, a few seconds each; with the folder of the MNIST
files, on those.  Grey values are binarized anew at every step.  The bound is each model's own on
the test rows: an ELBO in nats, but for the kinds marked so in the table.  log p(x) is estimated
with 500 samples where a model defines it.  Not here: the world model, which needs a game
(16_world_model.py), and likelihoods of other data (20_likelihoods.py).
"""

import argparse
import time

import numpy as np

import tinyvae as tv
from tinyvae import plots

SAMPLES, COLUMNS = 500, 16
WARM_UP = {"kl_schedule": "linear:0:1:20"}  # else the upper layer is never used
# what is asked of tv.VAE, and what the bound is where it is no ELBO
VARIANTS = {
    "autoencoder": ({"model": "ae"}, "loss"),
    "VAE": ({}, ""),
    "beta = 4": ({"beta": 4.0}, ""),
    "KL warm-up, free bits": ({"kl_schedule": "linear:0:1:10", "free_bits": 0.1}, ""),
    "5 samples a row": ({"model": "vae:samples=5"}, ""),
    "conditional": ({"model": "cvae"}, ""),
    "semi-supervised M2": ({"model": "m2"}, ""),
    "IWAE, K = 20": ({"model": "iwae:20"}, ""),
    "IWAE, DReG": ({"model": "iwae:20:dreg"}, ""),
    "mixture prior": ({"prior": "mixture:10"}, ""),
    "VampPrior": ({"prior": "vamp:20"}, ""),
    "flow prior": ({"prior": "flow:coupling:4"}, ""),
    "planar flow": ({"flow": "planar:8"}, ""),
    "inverse autoregressive flow": ({"flow": "iaf:4"}, ""),
    "Sylvester flow": ({"flow": "sylvester:4"}, ""),
    "beta-TCVAE": ({"model": "tc:4"}, ""),
    "FactorVAE": ({"model": "factor:6"}, ""),
    "Gumbel-softmax": ({"model": "gumbel:10:8"}, ""),
    "one class, summed out": ({"model": "categorical:30"}, ""),
    "bits, VIMCO": ({"model": "bernoulli:20:vimco"}, ""),
    "VQ-VAE": ({"model": "vq:codes=32:size=8:positions=6"}, ""),
    "ladder of two": ({"model": "ladder:5"} | WARM_UP, ""),
    "bottom-up of two": ({"model": "bottomup:5"} | WARM_UP, ""),
    "sequence of lines": ({"model": "sequence", "hidden": (200,)}, ""),
    "transformer of lines": ({"model": "sequence:transformer", "hidden": (64,)}, ""),
    "denoising": ({"corruption": "noise:0.3"}, ""),
    "VAE-GAN, grey": ({"model": "gan:1:pixels", "likelihood": "bce", "binarize": None}, "loss"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", help="models as the table names them, or their kinds")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--data-dir", help="folder of the MNIST files")
    options = parser.parse_args()
    source = "mnist" if options.data_dir else "digits"
    data = tv.data.load(source, data_dir=options.data_dir)
    sheet, names = [], []
    print(f"{'':28}{'bound':>9}{'log p(x)':>10}{'active':>8}{'seconds':>9}")
    for name, (asked, kind) in VARIANTS.items():
        model = asked.get("model", "vae").split(":")[0]
        if options.only and not {name, model} & set(options.only):
            continue
        vae, seconds = train(data, asked, options.epochs)
        labels = {"y": data.test_labels} if model == "cvae" else {}
        test = vae.evaluate(data.test, **labels)
        bound = f"{test.elbo:.2f}" + (" *" if kind else "  ")
        log_p = "-"
        if vae.network_.has_likelihood:
            log_p = f"{vae.log_likelihood(data.test, SAMPLES, **labels).mean():.2f}"
        print(f"{name:28}{bound:>9}{log_p:>10}{test.active_units:>8}{seconds:>9.1f}", flush=True)
        shown = {"y": np.arange(COLUMNS) % 10} if model == "cvae" else {}
        # a line that follows means, which no digit has, is a mean again: such models draw
        means = vae.network_.factors
        sheet.append(vae.sample(COLUMNS, random_state=0, mean=means, **shown))
        names.append(name)
    print("* a loss of its own, which bounds no likelihood")
    plots.image_grid(np.concatenate(sheet), "zoo.png", columns=COLUMNS, row_labels=names)
    print("wrote zoo.png: samples of each")


def train(data: tv.data.Dataset, asked: dict, epochs: int) -> tuple[tv.VAE, float]:
    """The model after some epochs, and the seconds that these took."""
    network = {"latent_dim": 10, "hidden": (200, 100), "activation": "gelu"}
    if data.name == "mnist":
        network = {"latent_dim": 20, "hidden": (400,)}
    training = {"epochs": epochs, "batch_size": 64, "learning_rate": 2e-3, "random_state": 0}
    vae = tv.VAE(**network | training | {"binarize": "dynamic"} | asked)
    if vae.has_own_sizes:  # in the model's text
        vae.latent_dim = tv.VAE().latent_dim
    started = time.perf_counter()
    vae.fit(data.train, data.train_labels)
    return vae, time.perf_counter() - started


if __name__ == "__main__":
    main()
