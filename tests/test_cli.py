"""cli.py, runs.py, console.py: every command once, what a run leaves, and every error line."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

import tinyvae as tv
from tinyvae import checking, checkpoint, cli, console, devices, runs
from tinyvae.data import load

ROOT = Path(__file__).parents[1]
SMALL = ("--hidden", 16, "--latent-dim", 3, "--batch-size", 256)
ALL = {*runs.FILES}
CLOCK = ("seconds", "examples_per_second", "peak_memory_mb")


@dataclass
class Result:
    code: int
    out: str
    err: str


def tinyvae(*arguments: object) -> Result:
    """Run a command here, as the shell would."""
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return Result(end.value.code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> str:
    result = tinyvae(*arguments)
    assert result.code == 0, result.err
    assert result.err == ""
    return result.out


def fails(*arguments: object) -> str:
    """The one line that a command with bad input ends with."""
    result = tinyvae(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def arrays(path: Path) -> dict[str, np.ndarray]:
    return checkpoint.read(path)[0]


def metrics(run: Path) -> list[dict]:
    """The log, without what the clock decides."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in CLOCK} for r in records]


def same(a: Path, b: Path) -> bool:
    """Whether two runs have come to the same bits."""
    x, y = arrays(a / "model.safetensors"), arrays(b / "model.safetensors")
    equal = x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x)
    return equal and metrics(a) == metrics(b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A run of three epochs, and what was printed."""
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, done("train", "digits", "--epochs", 3, "--out", path, *SMALL)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------- help
def test_help_is_a_page():
    page = done("--help")
    assert page == done()
    for word in ("tinyvae train digits", "tinyvae sample", "─ Train ─", "─ Look ─", "─ Check ─"):
        assert word in page
    assert done("--version") == f"tinyvae {tv.__version__}\n"


def test_every_command_and_option_is_explained():
    from typer.main import get_command

    commands = get_command(cli.app).commands
    assert set(commands) == {
        "train", "evaluate", "sample", "reconstruct", "interpolate", "traverse", "encode",
        "impute", "score", "gradcheck", "info",
    }  # fmt: skip
    for name, command in commands.items():
        assert command.help, name
        for option in command.params:
            assert option.help, (name, option.name)
        assert "Usage: tinyvae" in done(name, "--help")


def test_every_hyperparameter_can_be_given():
    from typer.main import get_command

    options = {parameter.name for parameter in get_command(cli.app).commands["train"].params}
    assert set(tv.VAE().get_params()) - options == {"encoder", "decoder"}


def test_help_imports_little():
    result = python(
        "from tinyvae.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    loaded = {name.split(".")[0] for name in result.stderr.split()}
    assert "rich" in loaded
    assert not loaded & {"matplotlib", "sklearn", "PIL", "numba", "scipy", "http"}


def test_a_missing_extra_is_one_line():
    for missing in ("typer", "rich"):
        result = python(f"sys.modules[{missing!r}] = None\nimport tinyvae.__main__")
        assert result.returncode == 2
        assert result.stderr == 'the command line needs: pip install "tinyvae[cli]"\n'


def test_python_m_tinyvae():
    result = python("import runpy; sys.argv = ['x', '--version']; runpy.run_module('tinyvae', "
                    "run_name='__main__')")  # fmt: skip
    assert result.stdout == f"tinyvae {tv.__version__}\n"


# ---------------------------------------------------------------------------------------- training
def test_a_run_leaves_its_files(trained):
    run, _ = trained
    assert {path.name for path in run.iterdir()} == ALL
    config = json.loads((run / "config.json").read_text())
    assert config["source"] == "digits"
    assert config["options"]["hidden"] == [16]
    assert config["options"]["epochs"] == 3
    assert config["options"]["binarize"] == "dynamic"  # grey images
    assert config["options"]["activation"] == "gelu"  # the digits' own default
    assert config["commands"][0].startswith("tinyvae train digits --epochs 3 --out ")
    assert config["versions"]["numpy"] == np.__version__
    assert [record["epoch"] for record in metrics(run)] == [1, 2, 3]
    assert len(metrics(run)[0]["kl_per_dimension"]) == 3
    for name in runs.PICTURES:
        with Image.open(run / name) as image:
            assert min(image.size) > 300


def test_a_run_says_what_it_does(trained):
    run, printed = trained
    lines = printed.splitlines()
    assert "\x1b" not in printed  # no terminal: no control codes
    assert lines[0] == "data    digits: 1,297 training, 250 validation, 250 test rows of 8x8x1"
    assert "dynamic binarization" in lines[1]
    epochs = [line.split()[0] for line in lines if "/3  " in line[:12]]
    assert epochs == ["1/3", "2/3", "3/3"]
    assert any(line.startswith("test    ELBO -") and "bits/dimension" in line for line in lines)
    assert "of 3 latent dimensions active" in printed
    for command in ("sample", "evaluate", "traverse"):
        assert f"tinyvae {command} {run}" in printed


def test_it_is_the_estimator_that_was_trained(trained):
    run, printed = trained
    digits = load("digits")
    vae = tv.VAE(
        3, hidden=(16,), activation="gelu", binarize="dynamic", learning_rate=2e-3, batch_size=256,
        epochs=3, random_state=0,
    ).fit(digits.train, validation=digits.validation)  # fmt: skip
    saved = tv.load(run / "model.safetensors")
    np.testing.assert_array_equal(saved.sample(2, 0), vae.sample(2, 0))
    assert f"ELBO {vae.score(digits.test):.2f} nats" in printed


def test_the_default_folder_names_data_and_time(here):
    np.save("rows.npy", np.random.default_rng(0).random((30, 4)) < 0.5)
    printed = done("train", "rows.npy", "--epochs", 1, *SMALL, "--no-validation", "--samples", 2)
    (run,) = (here / "runs").iterdir()
    assert run.name.startswith("rows-20")
    assert "27 training, 3 test rows of 4" in printed
    assert "log p(x)" in printed
    assert json.loads((run / "config.json").read_text())["options"]["binarize"] is None  # bits
    assert "validation_elbo" not in metrics(run)[0]
    assert runs.new_folder("rows.npy") != run.relative_to(here)


def test_a_loss_is_not_called_a_bound(here):
    printed = done("train", "digits", "--epochs", 1, *SMALL, "--likelihood", "bce", "--out", "a")
    assert "loss" in printed
    assert "ELBO" not in printed
    assert "bits/dimension" not in printed
    printed = done("evaluate", "a", "--limit", 5)
    assert "loss, bounds no likelihood" in printed
    assert "log p(x)" not in printed
    assert "bce is a plain loss" in fails("evaluate", "a", "--samples", 3)


def test_options_reach_the_model(here):
    rows = np.random.default_rng(0).standard_normal((60, 48)).astype(np.float32)
    np.savez("rows.npz", some=rows, other=rows[:, :3])
    done(
        "train", "rows.npz", "--array", "some", "--image-shape", "4,4,3", "--architecture", "conv",
        "--channels", "4,5", "--likelihood", "gaussian", "--variance", "learned", "--epochs", 1,
        "--kl-schedule", "linear:0:1:2", "--learning-rate", "cosine:0.01:0:3", "--clip-norm", 1,
        "--dtype", "float64", "--seed", 3, "--binarize", "none", "--out", "a", *SMALL,
    )  # fmt: skip
    vae = tv.load("a/model.safetensors")
    assert vae.image_shape == (4, 4, 3)
    assert (vae.channels, vae.hidden) == ((4, 5), (16,))
    assert (vae.variance, vae.dtype, vae.seed_) == ("learned", "float64", 3)
    assert vae.learning_rate == "cosine:0.01:0:3"
    for command in ("reconstruct", "interpolate", "traverse"):
        done(command, "a", "rows.npz", "--array", "some")
    assert "no latent" not in done("evaluate", "a")


def test_what_suits_the_digits_is_not_asked_of_a_model_with_sizes_of_its_own(here):
    _, config = runs.plan({"source": "digits", "model": "vq:codes=8"}, "")
    assert config.options["latent_dim"] == tv.VAE().latent_dim
    tv.VAE(**config.options)._validate()
    _, config = runs.plan({"source": "digits", "model": "vq:codes=8", "latent_dim": 5}, "")
    with pytest.raises(ValueError, match="model='vq' does not take latent_dim"):
        tv.VAE(**config.options)._validate()


def test_rows_that_are_no_images(here):
    np.save("rows.npy", np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32))
    done("train", "rows.npy", "--likelihood", "gaussian", "--epochs", 1, "--out", "a", *SMALL)
    for command in ("sample", "reconstruct", "interpolate", "traverse"):
        done(command, "a", "--out", "picture.png")
        with Image.open("picture.png") as image:
            assert min(image.size) > 100


@pytest.mark.parametrize("options", [("--model", "ladder:3:2"), ("--flow", "planar:2")])
def test_a_model_without_a_kl_of_each_dimension(here, options):
    """Every command works for it; its own log is shown in place of what it has not."""
    np.save("rows.npy", np.random.default_rng(0).random((40, 5)) < 0.5)
    small = (*SMALL[:4], "--batch-size", 16)
    printed = done("train", "rows.npy", "--epochs", 2, "--out", "a", *small, *options)
    assert "of 3 latent dimensions active" in printed
    assert not metrics(Path("a"))[0]["kl_per_dimension"]
    for command in ("sample", "reconstruct", "interpolate", "traverse"):
        done(command, "a", "--out", "picture.png")
    assert "active" in done("evaluate", "a")


def test_a_collapse_is_told_once(here):
    np.save("rows.npy", np.random.default_rng(0).random((40, 5)) < 0.5)
    options = ("--beta", 1000, "--epochs", 4, "--learning-rate", 0.05, "--out", "a")
    printed = done("train", "rows.npy", *options, *SMALL[:4], "--batch-size", 4)
    assert "warning" in metrics(Path("a"))[-2]
    assert printed.count("posterior has collapsed") == 1


# -------------------------------------------------------------------------- resuming, overwriting
def test_a_resumed_run_equals_one_never_stopped(trained, tmp_path):
    part = tmp_path / "part"
    done("train", "digits", "--epochs", 2, "--out", part, *SMALL)
    printed = done("train", "--resume", "--out", part, "--epochs", 3)
    assert [line.split()[0] for line in printed.splitlines() if "/3  " in line[:12]] == ["3/3"]
    assert same(part, trained[0])
    config = json.loads((part / "config.json").read_text())
    assert config["options"]["epochs"] == 3
    assert len(config["commands"]) == 2


def test_resuming_again_has_nothing_to_do(run):
    before = arrays(run / "model.safetensors")
    printed = done("train", "digits", "--resume", "--out", run, "--hidden", 16, "--samples", 2)
    assert "3 epochs were done already" in printed
    assert arrays(run / "model.safetensors").keys() == before.keys()


def test_a_run_killed_while_it_wrote(trained, run):
    """The log is a line ahead, half files lie about, and nothing is finished."""
    for name in ("model.safetensors", *runs.PICTURES):
        (run / name).unlink()
    (run / ".metrics.jsonl.abc.part").write_text("half")
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"epoch": 4')
    done("train", "--resume", "--out", run, "--epochs", 4)
    assert {path.name for path in run.iterdir()} == ALL
    assert metrics(run)[:3] == metrics(trained[0])
    assert len(metrics(run)) == 4


def test_a_run_killed_before_its_first_checkpoint(trained, run):
    for name in ALL - {"config.json"}:
        (run / name).unlink()
    done("train", "--resume", "--out", run)
    assert same(run, trained[0])


def test_a_run_killed_before_it_wrote_anything(trained, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / ".config.json.abc.part").write_text("half")
    done("train", "digits", "--epochs", 3, "--resume", "--out", new, *SMALL)
    assert same(new, trained[0])


def test_ctrl_c_saves_and_says_how_to_go_on(trained, tmp_path, monkeypatch):
    path, step = tmp_path / "a b", console.Log.on_step

    def on_step(self, progress, *rest):
        step(self, progress, *rest)
        if (progress.epoch, progress.batch) == (1, 3):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(console.Log, "on_step", on_step)
        result = tinyvae("train", "digits", "--epochs", 3, "--out", path, *SMALL)
    assert result.code == 130
    assert result.err == ""
    assert result.out.endswith(f"to go on:  tinyvae train --resume --out '{path}'\n")
    assert not (path / "model.safetensors").exists()
    done("sample", path)  # of the checkpoint
    done("train", "--resume", "--out", path)
    assert same(path, trained[0])


def test_overwrite_replaces_a_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    np.save(run.parent / "rows.npy", np.zeros((30, 4), bool))
    options = ("train", run.parent / "rows.npy", "--epochs", 1, "--out", run, *SMALL)
    before = (run / "model.safetensors").read_bytes()
    assert f"{run} exists: --resume continues it, --overwrite replaces it" in fails(*options)
    assert (run / "model.safetensors").read_bytes() == before
    done(*options, "--overwrite")
    assert tv.load(run / "model.safetensors").n_features_in_ == 4
    assert (run / "notes.txt").read_text() == "mine"


def test_overwrite_keeps_the_old_run_if_the_new_one_cannot_start(run):
    before = (run / "model.safetensors").read_bytes()
    fails("train", "digits", "--overwrite", "--out", run, "--latent-dim", 0)
    assert (run / "model.safetensors").read_bytes() == before


RESUME_ERRORS = {
    "--beta 2": "with --beta 1, not 2: only --epochs, --patience and --device may change",
    "--hidden 7,8": "with --hidden 16, not 7,8",
    "--seed 5": "with --seed 0, not 5",
    "--binarize none": "with --binarize dynamic, not none",
    "--no-validation": "with --no-validation False, not True",
    "--overwrite": "--resume continues a run, --overwrite replaces it",
    "sprites": "trained on other data",
}


@pytest.mark.parametrize("option", RESUME_ERRORS)
def test_what_a_resumed_run_refuses(run, option):
    before = {path: path.read_bytes() for path in run.iterdir()}
    line = fails("train", "--resume", "--out", run, "--epochs", 4, *option.split())
    assert RESUME_ERRORS[option] in line
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_what_cannot_be_resumed(here, run):
    assert "--resume needs --out RUN" in fails("train", "digits", "--resume")
    assert "there is no run in nothing" in fails("train", "--resume", "--out", "nothing")
    (here / "other").mkdir()
    (here / "other" / "file").touch()
    assert "there is no run in other" in fails("train", "digits", "--resume", "--out", "other")
    for text in ("{", "[]", "{}"):
        (run / "config.json").write_text(text)
        assert "config.json is damaged" in fails("train", "--resume", "--out", run)


def test_an_autoencoder_bounds_nothing(here):
    printed = done("train", "digits", "--model", "ae", "--epochs", 1, *SMALL, "--out", "a")
    assert "it bounds no likelihood" in printed
    assert "ELBO" not in printed
    assert "loss, bounds no likelihood" in done("evaluate", "a")
    assert "but --model ae is a plain loss" in fails("evaluate", "a", "--samples", 3)
    for command in ("sample", "reconstruct", "interpolate", "traverse", "encode"):
        done(command, "a")


# ------------------------------------------------------------------------------------------ labels
def test_a_model_of_labels(here):
    """Training, pictures and checks ask the data set for its labels."""
    done("train", "digits", "--model", "cvae", "--epochs", 2, "--out", "a", *SMALL)
    vae, digits = tv.load("a/model.safetensors"), load("digits")
    assert vae.classes_.tolist() == list(range(10))
    done("sample", "a", "--label", 3, "--n", 5, "--out", "x.npy")
    np.testing.assert_array_equal(np.load("x.npy"), vae.sample(5, 0, y=3))
    done("sample", "a", "--n", 12, "--out", "x.npy")
    np.testing.assert_array_equal(np.load("x.npy"), vae.sample(12, 0, y=[*range(10), 0, 1]))
    done("sample", "a")
    with Image.open("a/samples.png") as image:  # ten lines of seven, and the names of the classes
        assert image.size[1] / image.size[0] > 1.2
    printed = done("evaluate", "a", "--samples", 2, "--limit", 30)
    assert f"{vae.evaluate(digits.test[:30], digits.test_labels[:30]).elbo:.3f}" in printed
    done("encode", "a", "--split", "all", "--out", "z.npy")
    np.testing.assert_array_equal(np.load("z.npy"), vae.transform(*digits.part("all")))
    for command in ("reconstruct", "interpolate", "traverse"):
        done(command, "a")
    done("traverse", "a", "--label", 7, "--row", 3)
    assert "--label: there is no label '12'; the labels are 0, 1" in fails(
        "sample", "a", "--label", 12
    )
    done("train", "--resume", "--out", "a", "--epochs", 3)


def test_a_condition_of_real_values(here):
    """Any array is a condition; the sprites' factors are one."""
    options = ("--model", "cvae:learned_prior=true", "--epochs", 1, "--batch-size", 500)
    done("train", "sprites", *options, "--out", "a", "--hidden", 4, "--latent-dim", 2)
    done("sample", "a", "--n", 2, "--label", "0,0.5,0,0.5,0.5", "--out", "x.npy")
    assert np.load("x.npy").shape == (2, 64, 64, 1)
    assert "the model needs --label, 5 real numbers a row" in fails("sample", "a")
    assert "expected 5 numbers with commas" in fails("sample", "a", "--label", "heart")
    assert "expected (3, 5)" in fails("sample", "a", "--label", "1,2", "--n", 3)


def test_few_labels(here):
    """A semi-supervised model sees as many as it is shown, and says how well it classifies."""
    options = ("--model", "m2:alpha=5", "--labels", 25, "--epochs", 2)
    done("train", "digits", *options, "--out", "a", *SMALL)
    digits, vae = load("digits"), tv.load("a/model.safetensors")
    y = runs.shown_labels(digits.train_labels, 25)
    assert np.unique(y, return_counts=True)[1].tolist() == [1272, *[2] * 5, *[3] * 5]
    assert (y == digits.train_labels)[y >= 0].all()
    printed = done("evaluate", "a", "--samples", 2)
    accuracy = vae.evaluate(digits.test, digits.test_labels).log["accuracy"]
    assert f"accuracy {accuracy:.4f}" in printed
    for command in ("sample", "reconstruct", "interpolate", "traverse", "encode"):
        done(command, "a")
    assert "with --labels 25, not 30" in fails("train", "--resume", "--out", "a", "--labels", 30)
    done("train", "--resume", "--out", "a", "--epochs", 3)
    line = fails("train", "digits", "--model", "m2", "--labels", 5000, "--out", "b")
    assert "--labels 5000: of class 0 there are only" in line


def test_labels_where_there_are_none(run, here):
    np.save("rows.npy", np.random.default_rng(0).random((30, 4)) < 0.5)
    line = fails("train", "rows.npy", "--model", "cvae", "--out", "a")
    assert "rows.npy has no labels, which --model cvae needs" in line
    assert not Path("a").exists()
    assert "--label is for models of labels, but the model is vae" in fails(
        "sample", run, "--label", 3
    )


# -------------------------------------------------------------------------------- other commands
def test_evaluate(trained):
    run, _ = trained
    vae, digits = tv.load(run / "model.safetensors"), load("digits")
    printed = done("evaluate", run, "--split", "validation", "--samples", 7, "--limit", 20)
    rows = digits.validation[:20]
    result = vae.evaluate(rows)
    assert "20 validation rows" in printed
    for value in (result.elbo, -result.elbo / 64 / np.log(2), result.nll, result.kl,
                  vae.log_likelihood(rows, 7).mean()):  # fmt: skip
        assert f"{value:.3f}" in printed
    order = [line.split()[1] for line in printed.splitlines() if line.startswith("│ z")]
    assert order == [f"z{j}" for j in np.argsort(-np.array(result.kl_per_dimension))]
    assert f"active: {result.active_units} of 3" in printed
    assert "log p(x)" not in done("evaluate", run, "digits", "--samples", 0)
    assert "digits" in done("evaluate", run / "model.safetensors", "digits", "--samples", 0)


def test_sample(run, here):
    vae = tv.load(run / "model.safetensors")
    assert done("sample", run) == f"wrote   {run / 'samples.png'}\n"
    done("sample", run / "model.safetensors", "--n", 5, "--seed", 2, "--out", "x.npy")
    np.testing.assert_array_equal(np.load("x.npy"), vae.sample(5, 2))


def test_encode(run, here):
    vae, digits = tv.load(run / "model.safetensors"), load("digits")
    done("encode", run)
    done("encode", run, "digits", "--split", "train", "--out", "z.npy")
    np.testing.assert_array_equal(np.load(run / "all-codes.npy"), vae.transform(digits.whole()))
    np.testing.assert_array_equal(np.load("z.npy"), vae.transform(digits.train))


def test_missing_values_are_trained_on_and_filled_in(here, rng):
    x = rng.normal(size=(60, 1)) * [1.0, 2.0, -1.0]
    x[rng.random(x.shape) < 0.2] = np.nan
    np.save("x.npy", x)
    options = ("--likelihood", "gaussian", "--epochs", 1, "--latent-dim", 1)
    assert "has NaN at row" in fails("train", "x.npy", *options)
    done("train", "x.npy", *options, "--missing", "--corruption", "mask:0.1", "--out", "m")
    vae = tv.load("m/model.safetensors")
    assert (vae.missing, vae.corruption) == (True, "mask:0.1")
    assert "ELBO" in done("evaluate", "m", "--samples", 2)
    done("impute", "m", "--steps", 4)
    filled = np.load("m/all-imputed.npy")
    np.testing.assert_array_equal(filled, vae.impute(x, 0, steps=4))
    observed = ~np.isnan(x)
    np.testing.assert_array_equal(filled[observed], x[observed])


def test_score(run, here):
    vae, digits = tv.load(run / "model.safetensors"), load("digits")
    page = done("score", run, "--score", "reconstruction", "--contamination", 0.1)
    detector = tv.AnomalyDetector(vae, score="reconstruction", refit=False).fit(digits.train)
    scores = np.load(run / "all-scores.npy")
    np.testing.assert_allclose(scores, detector.score_samples(digits.whole()), rtol=1e-5)
    assert f"{(scores < detector.offset_).sum()} of 1,797 rows are below" in page
    assert "unknown score 'elb': did you mean 'elbo'" in fails("score", run, "--score", "elb")


@pytest.mark.parametrize("text", ["student:4:shared", "gaussian:shared", "logistic:17"])
def test_likelihoods_with_options(text, here):
    done("train", "digits", "--likelihood", text, "--epochs", 1, "--out", "m")
    vae = tv.load("m/model.safetensors")
    assert vae.likelihood_ == tv.likelihoods.resolve(text)
    assert "ELBO" in done("evaluate", "m", "--samples", 2)
    done("sample", "m", "--n", 4)


def test_pictures(run, here):
    shutil.copy(run / "model.safetensors", "m.safetensors")
    commands = {
        "reconstructions": ("reconstruct", run, "--n", 12),
        "interpolation": ("interpolate", run, "--rows", "3,8", "--steps", 4),
        "traversal": ("traverse", run),
        "a": ("traverse", run, "--row", 2, "--top", 2, "--steps", 3, "--out", "a.png"),
        "b": ("traverse", "m.safetensors", "digits", "--row", 2, "--out", "b.png"),
    }
    for name, command in commands.items():
        path = done(*command).split()[-1]
        assert Path(path).stem == name
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_gradcheck(monkeypatch):
    printed = done("gradcheck", "tanh", "conv2d")
    assert checking.formula("tanh")[1] in printed
    assert printed.count("pass") == 2
    assert "2 of 2 gradients agree" in printed

    def wrong(name, *, seed):
        raise checking.GradientError("gradient 0: error 1.0e-03")

    monkeypatch.setattr(checking, "check_op", wrong)
    result = tinyvae("gradcheck", "tanh")
    assert result.code == 1
    assert "FAIL" in result.out
    assert "1.0e-03" in result.out


def test_info():
    printed = done("info")
    for word in (tv.__version__, np.__version__, "numba: ", "threads", "data"):
        assert word in printed


def test_info_says_in_one_line_why_there_is_no_cuda(monkeypatch):
    reason = "compute capability 6.1 is below 7.5"
    monkeypatch.setattr(devices, "problem", lambda: reason)
    assert f" cuda: no, {reason}\n" in done("info")
    monkeypatch.setattr(devices, "problem", lambda: None)
    monkeypatch.setattr(devices, "describe", lambda: "NVIDIA T4, compute capability 7.5")
    assert " cuda: yes, NVIDIA T4, compute capability 7.5\n" in done("info")


# ---------------------------------------------------------------------------------------- devices
def test_a_device_that_cannot_be_used_is_one_line_before_any_work(run, here, monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda: "no CUDA device is visible")
    monkeypatch.setattr(runs, "load_data", None)  # would be work
    line = "error: device 'cuda' cannot be used: no CUDA device is visible\n"
    assert fails("train", "digits", "--device", "cuda", "--out", "new") == line
    assert not Path("new").exists()
    looks = ("evaluate", "sample", "reconstruct", "interpolate", "traverse", "encode")
    before = sorted(run.iterdir())
    for command in looks:
        assert fails(command, run, "--device", "cuda") == line
        assert "unknown device 'gpu'" in fails(command, run, "--device", "gpu")
    assert sorted(run.iterdir()) == before


def test_training_and_looking_on_a_gpu(here, gpu, rng):
    np.save("rows.npy", (rng.random((40, 16)) < 0.4).astype(np.float32))
    small = ("--hidden", 5, "--latent-dim", 2, "--batch-size", 16)
    printed = done("train", "rows.npy", "--epochs", 2, "--out", "a", "--device", "cuda", *small)
    assert "seed 0, on cuda" in printed
    config = json.loads(Path("a/config.json").read_text())
    assert config["options"]["device"] == config["versions"]["device"] == "cuda"
    launched = len(gpu.launched)
    for device, count in (("cuda", 1), ("cpu", 0), ("auto", 1)):
        done("evaluate", "a", "--device", device, "--samples", 2)
        done("encode", "a", "--device", device, "--out", f"{device}.npy")
        done("sample", "a", "--device", device, "--out", f"{device}-samples.npy")
        assert (len(gpu.launched) > launched) == bool(count)
        launched = len(gpu.launched)
    np.testing.assert_allclose(np.load("cuda.npy"), np.load("cpu.npy"), rtol=1e-4, atol=1e-5)
    # a run goes on where it was, or where one says
    done("train", "--resume", "--out", "a", "--epochs", 3)
    assert len(gpu.launched) > launched
    launched = len(gpu.launched)
    done("train", "--resume", "--out", "a", "--epochs", 4, "--device", "cpu")
    assert len(gpu.launched) == launched
    done("train", "rows.npy", "--epochs", 4, "--out", "b", "--device", "cpu", *small)
    for name, array in arrays(Path("b/model.safetensors")).items():
        resumed = arrays(Path("a/model.safetensors"))[name]
        np.testing.assert_allclose(resumed, array, rtol=1e-3, atol=1e-4)


def test_a_run_of_before_there_were_devices_is_continued(run):
    config = json.loads((run / "config.json").read_text())
    del config["options"]["device"], config["versions"]["device"]
    (run / "config.json").write_text(json.dumps(config))
    done("train", "--resume", "--out", run, "--epochs", 4)
    done("train", "--resume", "--out", run, "--epochs", 5, "--device", "cpu")
    assert len(metrics(run)) == 5


# ---------------------------------------------------------------------------------------- display
def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


@pytest.mark.parametrize(("width", "pause"), [(60, 0.0), (100, 0.06)])
def test_on_a_terminal_there_is_a_bar_and_a_line_now_and_then(here, monkeypatch, width, pause):
    np.save("rows.npy", np.random.default_rng(0).random((30, 4)) < 0.5)
    monkeypatch.setenv("TERM", "xterm")
    clock = types.SimpleNamespace(perf_counter=itertools.count(100, pause).__next__)
    monkeypatch.setattr(console, "time", clock)  # seconds a step; the bar moves each tenth of one
    screen = terminal(width)
    monkeypatch.setattr(cli, "out", screen)
    done("train", "rows.npy", "--epochs", 40, "--out", "a", *SMALL)
    text = screen.file.getvalue()
    assert "\x1b" in text
    assert " examples/s" in text
    lines = re.findall(r"  (\d+)/40 ", text)
    assert lines == ["1", *map(str, range(2, 41, 2))]
    bars = dict.fromkeys(re.findall(r"epoch (\d+)/40 ", text))
    assert list(bars) == (list(map(str, range(1, 41, 2))) if pause else ["1"])
    assert ("KL by z" in text) == (width == 100)


def test_bars():
    assert console.bars([0.0, 0.01, 1.0]) == "▁▁█"
    assert console.bars([0.05]) == "▅"  # relative to 0.1 at least


@pytest.mark.parametrize("screen", [terminal(), Console(file=io.StringIO())])
def test_downloads_are_shown(screen):
    with console.downloads(screen) as progress:
        progress(1_000_000, 4_000_000, "images.gz")
        progress(4_000_000, 4_000_000, "images.gz")
        progress(1, 2, "labels.gz")
    text = screen.file.getvalue()
    assert "images.gz" in text
    assert "labels.gz" in text
    assert ("images.gz, 4.0 MB" in text) == (not screen.is_terminal)


# ----------------------------------------------------------------------------------------- errors
def idx(*, magic: bytes = b"\0\0\x08\x03", missing: int = 0) -> bytes:
    return magic + struct.pack(">3I", 10, 4, 4) + bytes(160 - missing)


@pytest.fixture
def bad(here) -> Path:
    """A folder of files with something wrong with each."""
    rng = np.random.default_rng(0)
    rows = rng.random((60, 7)).astype(np.float32)
    np.save("grey.npy", rows)
    np.save("real.npy", rows * 3 - 1)
    np.save("text.npy", np.array([["a"] * 4] * 9))
    for name, place in (("nan", (3, 1)), ("late", (58, 2))):
        array = rows.copy()
        array[place] = np.nan if name == "nan" else -np.inf
        np.save(f"{name}.npy", array)
    np.savez("two.npz", images=rows, others=rows)
    (here / "magic-idx3-ubyte").write_bytes(idx(magic=b"\x89PNG"))
    (here / "short-idx3-ubyte").write_bytes(idx(missing=5))
    (here / "cut-idx3-ubyte.gz").write_bytes(gzip.compress(idx())[:-12])
    (here / "images").mkdir()
    for name, size in (("a", (8, 8)), ("b", (8, 9))):
        Image.new("L", size).save(here / "images" / f"{name}.png")
    return here


TRAIN_ERRORS = {
    "": "train needs DATA: digits, sprites, mnist, fashion-mnist, or a path",
    "digit": "unknown data set 'digit': did you mean 'digits'?",
    "none.npy": "none.npy: no such file or folder",
    "mnist --data-dir images": "no train-images-idx3-ubyte.gz and no train-images-idx3-ubyte in",
    "magic-idx3-ubyte": "magic-idx3-ubyte: magic number is 0x89504e47, so it is not an idx file",
    "short-idx3-ubyte": "short-idx3-ubyte: expected 160 bytes for shape (10, 4, 4), got",
    "cut-idx3-ubyte.gz": "cut-idx3-ubyte.gz: damaged gzip",
    "images": "b.png is 9 x 8 x 1 (H x W x C), but images/a.png is 8 x 8 x 1",
    "text.npy": "text.npy: dtype is <U1, expected real numbers",
    "two.npz": "name one by array=: images (60, 7), others (60, 7)",
    "two.npz --array image": "unknown array 'image': did you mean 'images'?",
    "nan.npy --likelihood gaussian": "nan.npy (train rows) has NaN at row 3, column 1",
    "late.npy --likelihood gaussian": "late.npy (test rows) has -infinity at row 4, column 2",
    "real.npy": "outside [0, 1]; scale the values to [0, 1], or use --likelihood gaussian",
    "real.npy --binarize static": "outside [0, 1]; scale the values",
    "grey.npy": "binarize='dynamic' or 'static'), or take the cross-entropy as a plain loss",
    "grey.npy --image-shape 2,2,2": "image_shape",
    "digits --latent-dim 0": "latent_dim must be a whole number >= 1, got 0",
    "digits --epochs 0": "epochs must be a whole number >= 1, got 0",
    "digits --epochs many": "Invalid value for '--epochs'",
    "digits --hidden 4,x": "--hidden: expected whole numbers with commas between, got '4,x'",
    "digits --seed -1": "Invalid value for '--seed'",
    "digits --model vea": "unknown model 'vea': did you mean 'vae'?",
    "digits --likelihood bernouli": "unknown likelihood 'bernouli': did you mean 'bernoulli'?",
    "digits --architecture cnv": "unknown architecture 'cnv': did you mean 'conv'?",
    "digits --activation rlu": "unknown activation 'rlu': did you mean 'relu'?",
    "digits --binarize dynamc": "unknown binarize 'dynamc': did you mean 'dynamic'?",
    "digits --dtype float23": "unknown dtype 'float23': did you mean 'float32'?",
    "digits --kl-schedule liner:0:1": "unknown schedule 'liner': did you mean 'linear'?",
    "digits --variance learnd --likelihood gaussian": "did you mean 'learned'?",
    "digits --beta -1": "beta must be finite and >= 0, got -1.0",
    "digits --patience 2 --no-validation": "--patience needs validation rows",
    "digits --samples 3 --likelihood bce": "bce is a plain loss",
    "digits --epoch 3": "No such option: --epoch",
    "digits --out grey.npy": "grey.npy is a file: --out names a folder",
    "digits --learning-rate 1e9": "the loss is nan; op ",
}


@pytest.mark.parametrize("arguments", TRAIN_ERRORS)
def test_bad_input_to_train_is_one_line_and_leaves_nothing(bad, arguments):
    before = sorted(bad.rglob("*"))
    line = fails("train", *arguments.split())
    assert TRAIN_ERRORS[arguments] in line
    assert sorted(bad.rglob("*")) == before


def test_a_failed_run_leaves_an_empty_folder_empty(here):
    (here / "a").mkdir()
    assert "the loss is" in fails("train", "digits", "--learning-rate", 1e9, "--out", "a")
    assert not list((here / "a").iterdir())


def test_unknown_commands_and_missing_arguments(here):
    assert "No such command 'trian'" in fails("trian", "digits")
    assert "Missing argument 'RUN'; see tinyvae sample --help" in fails("sample")


def test_bad_input_to_the_other_commands(run, bad):
    errors = {
        ("sample", "none"): "there is no file none",
        ("sample", "images"): "there is no model in images",
        ("sample", run, "--n", 0): "Invalid value for '--n'",
        ("sample", run, "--out", "a.jpg"): "--out must end in .png or .npy, got a.jpg",
        ("sample", run, "--out", "none/a.png"): "none/a.png: there is no folder none",
        ("encode", run, "--out", "a.csv"): "--out must end in .npy, got a.csv",
        ("evaluate", run, "grey.npy"):
            "grey.npy has rows of 7 (7 features), but the model was trained on 8 x 8 x 1 (64)",
        ("evaluate", run, "--split", "tst"): "unknown split 'tst': did you mean 'test'?",
        ("evaluate", run, "none.npy"): "none.npy: no such file or folder",
        ("interpolate", run, "--rows", "1"): "--rows takes two row numbers, A,B; got '1'",
        ("interpolate", run, "--rows", "0,250"): "there is no row 250: they are 0 to 249",
        ("gradcheck", "conv2"): "unknown op 'conv2': did you mean 'conv2d'?",
    }  # fmt: skip
    before = sorted(bad.rglob("*"))
    for arguments, message in errors.items():
        assert message in fails(*arguments)
    assert sorted(bad.rglob("*")) == before
    shutil.copy(run / "model.safetensors", "m.safetensors")
    assert "give DATA, the model file does not name it" in fails("evaluate", "m.safetensors")


def test_a_run_without_validation_rows(here):
    np.save("rows.npy", np.zeros((30, 4), bool))
    done("train", "rows.npy", "--no-validation", "--epochs", 1, "--out", "a", *SMALL)
    assert "rows.npy has no validation rows" in fails("evaluate", "a", "--split", "validation")


def test_files_that_are_no_models_of_ours(run):
    path = run / "model.safetensors"
    content = path.read_bytes()
    altered = bytearray(content)
    altered[-1] ^= 1
    for new, message in ((content[:-9], "truncated"), (bytes(altered), "was altered"),
                         (b"PK junk", "not a whole safetensors file")):  # fmt: skip
        path.write_bytes(new)
        assert message in fails("sample", run)
    save_file({"weight": np.zeros(3, np.float32)}, str(path))
    assert "not one that tinyvae wrote" in fails("evaluate", run)
    cut = run / "checkpoint.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "truncated" in fails("train", "--resume", "--out", run, "--epochs", 4)


@pytest.mark.parametrize("good", [0, 3, 6])
def test_a_full_disk(here, monkeypatch, good):
    """The disk has room for so many files: the run's four, twice for each further epoch."""
    np.save("rows.npy", np.random.default_rng(0).random((30, 4)) < 0.5)
    written = 0

    def fsync(handle):
        nonlocal written
        written += 1
        if written > good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    line = fails("train", "rows.npy", "--epochs", 3, "--out", "runs/a", *SMALL)
    name = {0: "config.json", 3: "checkpoint.safetensors", 6: "metrics.jsonl"}[good]
    assert line == f"error: {Path('runs/a') / name}: no space left on device\n"
    monkeypatch.undo()
    left = sorted(path.name for path in here.rglob("*"))
    if good <= 3:
        assert left == ["rows.npy"]
    else:
        assert left == ["a", "checkpoint.safetensors", "config.json", "metrics.jsonl", "rows.npy",
                        "runs"]  # fmt: skip
        os.chdir(here)
        done("train", "--resume", "--out", "runs/a")
        assert len(metrics(Path("runs/a"))) == 3


def test_a_full_disk_at_the_end(run, monkeypatch):
    def replace(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), paths[0], None, paths[1])

    before = (run / "samples.png").read_bytes()
    monkeypatch.setattr(os, "replace", replace)
    assert fails("sample", run) == f"error: {run / 'samples.png'}: no space left on device\n"
    assert (run / "samples.png").read_bytes() == before
    assert not list(run.glob(".*"))


def test_debugging_shows_the_traceback(here, monkeypatch):
    monkeypatch.setenv("TINYVAE_DEBUG", "1")
    result = tinyvae("sample", "none")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.endswith("error: there is no file none\n")


def test_a_warning_is_one_line(monkeypatch):
    monkeypatch.setattr(console, "show_info", lambda _: warnings.warn("no\nGPU", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert tinyvae("info") == Result(0, "", "warning: no GPU\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(path, device):
        raise RuntimeError("a bug")

    monkeypatch.setattr(runs, "open_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["sample", "x"])
