"""What priors, flows and importance weights are worth on MNIST: log-likelihood at equal budget.

    python -m benchmarks.family --data-dir FOLDER [--epochs 40] [--seeds 2] [--only vae iwae-5 ...]

Every variant has the same networks (784-200-40-200-784), sees the same rows of the 50,000 in the
same order, binarized anew at every step, and gets the same number of updates from the same
optimizer, whose learning rate falls to zero on half a cosine.  vae-5 sees as many
samples as iwae-5, without its bound.  log p(x) is estimated on the 10,000 test images with
`--samples` samples; what two variants differ by is paired, row by row and seed by seed, with its
standard error over the rows.  A run is kept in `--runs` when it has ended, and not made again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import tinyvae as tv

from . import _common

VARIANTS: dict[str, dict[str, Any]] = {
    "vae": {},
    "vae-5": {"model": "vae:5"},
    "iwae-5": {"model": "iwae:5"},
    "iwae-5-dreg": {"model": "iwae:5:dreg"},
    "iwae-50": {"model": "iwae:50"},
    "mixture-100": {"prior": "mixture:100"},
    "vamp-100": {"prior": "vamp:100"},
    "flow-prior": {"prior": "flow:coupling:4"},
    "planar-8": {"flow": "planar:8"},
    "sylvester-4": {"flow": "sylvester:4"},
    "iaf-4": {"flow": "iaf:4:200"},
}
# each with what it is compared with: the plain VAE, and the same number of samples
PAIRS = [
    *((name, "vae") for name in VARIANTS if name != "vae"),
    ("iwae-5", "vae-5"),
    ("iwae-5-dreg", "vae-5"),
]
HEADER = ["variant", "seed", "test ELBO", "KL", "active", "log p(x)", "+-"]
PAIR_HEADER = ["log p(x)", "above", "gain", "+-", "least of the seeds"]


def measure(options: dict[str, Any], data: Any, samples: int, **common: Any) -> tuple[dict, Any]:
    """Train one variant: its numbers, and log p(x) of every test row."""
    model = tv.VAE(binarize="dynamic", **common, **options).fit(data.train)
    result = model.evaluate(data.test)
    log_p = model.log_likelihood(data.test, samples).astype(np.float64)
    return {
        "elbo": result.elbo,
        "nll": result.nll,
        "kl": result.kl,
        "active_units": result.active_units,
        "log_likelihood": float(log_p.mean()),
        "error": standard_error(log_p),
        "updates": model.history_[-1]["step"],
        "train_elbo": model.history_[-1]["elbo"],
    }, log_p


def standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.std() / math.sqrt(len(values)))


def kept(path: Path, settings: dict[str, Any], make: Any) -> tuple[dict, np.ndarray]:
    """What `make` returns, from the file if it holds a run with these settings."""
    text = json.dumps(settings, sort_keys=True)
    if path.exists():
        with np.load(path) as stored:
            if str(stored["settings"]) == text:
                return json.loads(str(stored["found"])), stored["log_p"]
    found, log_p = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, settings=text, found=json.dumps(found), log_p=log_p)
    return found, log_p


def compared(log_p: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """The gain of each pair of PAIRS for which there are runs: (row, seed) by (row, seed)."""
    pairs = []
    for name, reference in PAIRS:
        if name in log_p and reference in log_p:
            gain = np.stack(log_p[name]) - np.stack(log_p[reference])  # (seeds, rows)
            pairs.append(
                {
                    "variant": name,
                    "above": reference,
                    "gain": float(gain.mean()),
                    "error": standard_error(gain.mean(axis=0)),
                    "each_seed": gain.mean(axis=1).tolist(),
                }
            )
    return pairs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder of the four MNIST files")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant")
    parser.add_argument("--latent-dim", type=int, default=40)
    parser.add_argument("--hidden", type=int, nargs="+", default=[200])
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="the first")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=200, help="of each log p(x)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/family"), help="to keep runs in")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    data = tv.data.load("mnist", data_dir=options.data_dir)
    common = {name: getattr(options, name) for name in ("epochs", "latent_dim", "hidden")}
    common["batch_size"] = options.batch_size
    common["learning_rate"] = f"cosine:{options.learning_rate}:0:{options.epochs}"
    runs: dict[str, Any] = {name: {"options": VARIANTS[name], "seeds": []} for name in options.only}
    log_p: dict[str, list[np.ndarray]] = {name: [] for name in options.only}
    for seed in range(options.seeds):
        for name in options.only:
            settings = common | VARIANTS[name] | {"random_state": seed}
            found, rows = kept(
                options.runs / f"{name}-{seed}.npz",
                settings | {"samples": options.samples},
                lambda settings=settings: measure({}, data, options.samples, **settings),
            )
            runs[name]["seeds"].append(found)
            log_p[name].append(rows)
            print(name, seed, {k: round(v, 2) for k, v in found.items()}, flush=True)
    pairs = compared(log_p)
    _show(runs, pairs)
    about = {"units": "nats per image", "samples": options.samples, **common}
    print("written:", _common.write("family", about | {"runs": runs, "pairs": pairs}))


def _show(runs: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    columns = ("elbo", "kl", "active_units", "log_likelihood", "error")
    rows = [
        [name, seed, *(found[column] for column in columns)]
        for name, run in runs.items()
        for seed, found in enumerate(run["seeds"])
    ]
    print(_common.table(HEADER, rows))
    print(
        _common.table(
            PAIR_HEADER,
            [[p["variant"], p["above"], p["gain"], p["error"], min(p["each_seed"])] for p in pairs],
        )
    )


if __name__ == "__main__":
    main()
