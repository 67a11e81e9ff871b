"""What the plain VAE reaches on MNIST: six runs of ten epochs, as the README's table has them.

    python -m benchmarks.mnist --data-dir FOLDER [--runs runs/mnist]

The set-up is PyTorch's basic VAE example (784-400-20-400-784, relu, batch 128, Adam 1e-3), and
convolutions beside it (4x4/2 to 32 and 64 filters, 256 dense units).  `bce` is that example's loss
on grey pixels, trained on all 60,000 images as there; the Bernoulli runs train on 50,000.  A run
that is there already is not trained again.  On two cores: a minute for the three MLPs, a quarter
of an hour for the convolutions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import tinyvae as tv

from . import _common

ARCHITECTURES = {"mlp": [], "conv": ["--architecture", "conv", "--hidden", "256"]}
DATA = {
    "bce": ["--likelihood", "bce", "--no-validation"],
    "dynamic": ["--binarize", "dynamic"],
    "static": ["--binarize", "static"],
}
SAMPLES = 100


def _model(folder: Path, options: list[str], data_dir: str) -> tv.VAE:
    """The model of a run, which is trained, or continued, if it is not finished."""
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-m", "tinyvae", "train", "mnist", "--data-dir", data_dir]
        subprocess.run([*command, "--out", str(folder), "--resume", *options], check=True)
    return tv.load(folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder of the four MNIST files")
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist"))
    options = parser.parse_args()
    test = tv.data.load("mnist", data_dir=options.data_dir).test
    rows, results = [], {}
    for data, data_options in DATA.items():
        for architecture, model_options in ARCHITECTURES.items():
            name = f"{architecture}-{data}"
            chosen = [*data_options, *model_options]
            model = _model(options.runs / name, chosen, options.data_dir)
            result = model.evaluate(test)
            found = {"options": chosen, **result.as_dict(), "history": model.history_}
            if data != "bce":  # a loss bounds no likelihood
                found["log_likelihood"] = float(model.log_likelihood(test, SAMPLES).mean())
            results[name] = found
            seconds = model.history_[-1]["seconds"]
            rows.append([name, result.elbo, result.nll, result.kl, result.active_units,
                         found.get("log_likelihood"), seconds])  # fmt: skip
    header = ["run", "test ELBO", "nll", "KL", "active units", f"log p(x), K={SAMPLES}", "seconds"]
    print(_common.table(header, rows))
    print("written:", _common.write("mnist", {"units": "nats per image", "runs": results}))


if __name__ == "__main__":
    main()
