"""What priors, flows and importance weights are worth on MNIST: log-likelihood at equal budget.

    python -m benchmarks.family --data-dir FOLDER [--epochs 20] [--only vae iwae-5 ...]

Every variant has the same networks (784-300-300-40-300-300-784 by default), sees the same rows of
the 50,000 in the same order, binarized anew at every step, and starts from the same seed.  vae-5 is
what iwae-5 costs, without its bound.  log p(x) is estimated on the test images with `--samples`
samples; what the models differ by is paired, row by row, with its standard error.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

import tinyvae as tv

from . import _common

VARIANTS: dict[str, dict[str, Any]] = {
    "vae": {},
    "vae-5": {"model": "vae:5"},
    "iwae-5": {"model": "iwae:5"},
    "iwae-5-dreg": {"model": "iwae:5:dreg"},
    "mixture-100": {"prior": "mixture:100"},
    "vamp-100": {"prior": "vamp:100"},
    "flow-prior": {"prior": "flow:coupling:4"},
    "planar-8": {"flow": "planar:8"},
    "iaf-2": {"flow": "iaf:2"},
}


def measure(options: dict[str, Any], data: Any, samples: int, **common: Any) -> tuple[dict, Any]:
    """Train one variant: its numbers, and log p(x) of every test row."""
    model = tv.VAE(binarize="dynamic", random_state=0, **common, **options).fit(data.train)
    result = model.evaluate(data.test)
    log_p = model.log_likelihood(data.test, samples)
    return {
        "options": options,
        "elbo": result.elbo,
        "nll": result.nll,
        "kl": result.kl,
        "active_units": result.active_units,
        "log_likelihood": float(log_p.mean(dtype=np.float64)),
        "seconds": model.history_[-1]["seconds"],
    }, log_p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder of the four MNIST files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--latent-dim", type=int, default=40)
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 300])
    parser.add_argument("--samples", type=int, default=200, help="of each log p(x)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    data = tv.data.load("mnist", data_dir=options.data_dir)
    common = {name: getattr(options, name) for name in ("epochs", "latent_dim", "hidden")}
    runs, rows, first = {}, [], None
    for name in options.only:
        found, log_p = measure(VARIANTS[name], data, options.samples, **common)
        first = log_p if first is None else first
        gain = (log_p - first).astype(np.float64)
        found["gain"] = float(gain.mean())
        found["gain_error"] = float(gain.std() / math.sqrt(len(gain)))
        runs[name] = found
        columns = ("elbo", "kl", "active_units", "log_likelihood", "gain", "gain_error", "seconds")
        rows.append([name, *(found[column] for column in columns)])
        print(name, {k: round(v, 2) for k, v in found.items() if isinstance(v, float)}, flush=True)
    header = ["variant", "test ELBO", "KL", "active", f"log p(x), K={options.samples}",
              f"gain on {options.only[0]}", "+-", "seconds"]  # fmt: skip
    print(_common.table(header, rows))
    about = {"units": "nats per image", "samples": options.samples, **common, "runs": runs}
    print("written:", _common.write("family", about))


if __name__ == "__main__":
    main()
