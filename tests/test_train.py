import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import tinyvae as tv
from tinyvae.train import Progress

OPTIONS = {"latent_dim": 3, "hidden": (16,), "batch_size": 20, "epochs": 4, "random_state": 5}


@pytest.fixture(scope="module")
def bits():
    """90 rows of 12 bits that two hidden causes explain."""
    rng = np.random.default_rng(0)
    causes = rng.random((90, 2)) < 0.5
    pattern = np.repeat(causes, 6, axis=1)
    return (pattern ^ (rng.random((90, 12)) < 0.05)).astype(np.float32)


class StopAfter(tv.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch(self, record):
        return record["epoch"] == self.epochs


class ControlC(tv.Callback):
    """Press Ctrl-C after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, progress, batches, nll, kl):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGINT)


def weights(vae):
    return {name: tensor.data.copy() for name, tensor in vae.network_.named_parameters()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def without_clock(history):
    clock = ("seconds", "examples_per_second", "peak_memory_mb")
    return [{k: v for k, v in record.items() if k not in clock} for record in history]


def test_the_elbo_rises_and_the_log_says_so(bits):
    options = OPTIONS | {"epochs": 30, "learning_rate": 0.01}
    vae = tv.VAE(**options).fit(bits, validation=bits[:30])
    elbos = [record["elbo"] for record in vae.history_]
    assert elbos[-1] > elbos[0] + 1
    record = vae.history_[-1]
    assert record["elbo"] == pytest.approx(-(record["nll"] + record["kl"]))
    assert sum(record["kl_per_dimension"]) == pytest.approx(record["validation_kl"], rel=1e-5)
    assert record["step"] == 30 * 5  # 90 rows in batches of 20: the last has 10
    assert record["gradient_norm"] > 0
    assert record["seconds"] > 0
    assert 10 < record["peak_memory_mb"] < 10_000
    assert record["active_units"] >= 1


def test_two_runs_are_equal_and_another_seed_is_not(bits):
    first, second = (tv.VAE(**OPTIONS).fit(bits) for _ in range(2))
    assert_same_bits(weights(first), weights(second))
    other = tv.VAE(**OPTIONS | {"random_state": 6}).fit(bits)
    assert not np.array_equal(
        other.network_.encoder.mu.weight.data, first.network_.encoder.mu.weight.data
    )


EXTRA = {
    "plain": {},
    "dynamic": {"binarize": "dynamic"},
    "static": {"binarize": "static"},
    "float64": {"dtype": "float64"},
    "schedules": {"kl_schedule": "cyclical:0:1:2:0.5", "learning_rate": "cosine:0.01:0.001:4"},
    "clipped": {"clip_norm": 0.5, "weight_decay": 0.01},
    "patience": {"patience": 2},
}


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_resume_gives_the_same_bits(bits, tmp_path, extra):
    options = OPTIONS | extra
    path = tmp_path / "checkpoint.safetensors"
    validation = bits[:30]
    whole = tv.VAE(**options).fit(bits, validation=validation)
    stopped = tv.VAE(**options | {"epochs": 2})
    stopped.fit(bits, validation=validation, checkpoint=path)
    resumed = tv.VAE(**options).fit(bits, validation=validation, checkpoint=path, resume=True)
    assert_same_bits(weights(whole), weights(resumed))
    assert without_clock(resumed.history_) == without_clock(whole.history_)


@pytest.mark.parametrize("steps", [1, 7, 15])
def test_ctrl_c_saves_in_the_middle_of_an_epoch(bits, tmp_path, steps):
    path = tmp_path / "checkpoint.safetensors"
    whole = tv.VAE(**OPTIONS).fit(bits)
    with pytest.raises(tv.Interrupted):
        tv.VAE(**OPTIONS).fit(bits, checkpoint=path, callbacks=[ControlC(steps)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert tv.load(path).optimizer_.steps == steps
    resumed = tv.VAE(**OPTIONS).fit(bits, checkpoint=path, resume=True)
    assert_same_bits(weights(whole), weights(resumed))
    assert without_clock(resumed.history_) == without_clock(whole.history_)


def test_training_in_another_thread(bits, tmp_path):
    vae = tv.VAE(**OPTIONS)
    thread = threading.Thread(target=vae.fit, args=(bits,), kwargs={"checkpoint": tmp_path / "c"})
    thread.start()
    thread.join()
    assert len(vae.history_) == 4


def test_a_finished_run_resumes_to_itself_and_can_go_on(bits, tmp_path):
    path = tmp_path / "c"
    done = tv.VAE(**OPTIONS).fit(bits, checkpoint=path)
    again = tv.VAE(**OPTIONS).fit(bits, checkpoint=path, resume=True)
    assert_same_bits(weights(done), weights(again))
    longer = tv.VAE(**OPTIONS | {"epochs": 6}).fit(bits, checkpoint=path, resume=True)
    assert_same_bits(weights(longer), weights(tv.VAE(**OPTIONS | {"epochs": 6}).fit(bits)))


def test_resume_refuses_other_options_other_data_and_finished_models(bits, tmp_path):
    path, model = tmp_path / "c", tmp_path / "m"
    vae = tv.VAE(**OPTIONS).fit(bits, checkpoint=path)
    with pytest.raises(ValueError, match=r"was trained with beta=1.0, not 2.0"):
        tv.VAE(**OPTIONS | {"beta": 2.0}).fit(bits, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="trained on other data"):
        tv.VAE(**OPTIONS).fit(1 - bits, checkpoint=path, resume=True)
    vae.save(model)
    with pytest.raises(ValueError, match="a finished model, not a checkpoint"):
        tv.VAE(**OPTIONS).fit(bits, checkpoint=model, resume=True)
    with pytest.raises(FileNotFoundError):
        tv.VAE(**OPTIONS).fit(bits, checkpoint=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="needs the checkpoint"):
        tv.VAE(**OPTIONS).fit(bits, resume=True)


def test_early_stopping_keeps_the_best_weights(bits):
    options = OPTIONS | {"epochs": 200, "patience": 3, "learning_rate": 0.1, "hidden": (64,)}
    vae = tv.VAE(**options).fit(bits[:40], validation=bits[40:])
    elbos = [record["validation_elbo"] for record in vae.history_]
    assert len(elbos) < 200
    assert len(elbos) - 1 - int(np.argmax(elbos)) == 3
    assert vae.evaluate(bits[40:]).elbo == pytest.approx(max(elbos))
    with pytest.raises(ValueError, match="patience needs validation data"):
        tv.VAE(**options).fit(bits)


def test_callbacks_hear_every_step_and_may_stop(bits):
    heard = []

    class Listener(tv.Callback):
        def on_step(self, progress, batches, nll, kl):
            heard.append((progress.epoch, progress.batch, batches))

    vae = tv.VAE(**OPTIONS).fit(bits, callbacks=[Listener(), StopAfter(2)])
    assert heard == [(epoch, batch, 5) for epoch in range(2) for batch in range(1, 6)]
    assert len(vae.history_) == 2


def test_clipping_bounds_the_update(bits):
    """With SGD-like small steps: the clipped gradient's norm is what Adam's moments saw."""
    vae = tv.VAE(**OPTIONS | {"clip_norm": 1e-3, "epochs": 1}).fit(bits)
    m = np.concatenate([a.ravel() for a in vae.optimizer_.state["m"]])
    assert np.linalg.norm(m) <= 1e-3


def test_the_learning_rate_and_the_kl_weight_follow_their_schedules(bits):
    options = OPTIONS | {"learning_rate": "linear:0.01:0.002:4", "kl_schedule": "linear:0:1:2"}
    history = tv.VAE(**options | {"beta": 4.0}).fit(bits).history_
    last = [epoch + 0.8 for epoch in range(4)]  # the time of the last of five steps
    rates = [record["learning_rate"] for record in history]
    np.testing.assert_allclose(rates, [0.01 - 0.002 * t for t in last])
    weights_seen = [record["kl_weight"] for record in history]
    np.testing.assert_allclose(weights_seen, [4 * min(t / 2, 1) for t in last])


def test_a_diverging_run_stops_and_names_step_op_and_tensor(bits):
    with pytest.raises(tv.DivergedError) as caught:
        tv.VAE(**OPTIONS | {"learning_rate": 1e4}).fit(bits)
    message = str(caught.value)
    assert "step " in message
    assert "(epoch 1)" in message
    assert "op '" in message or "parameter " in message
    assert "largest" in message or "since the last update" in message


def test_a_parameter_gone_bad_is_named(bits):
    class Spoil(tv.Callback):
        def on_epoch(self, record):
            vae.network_.encoder.mu.bias.data[1] = np.inf

    vae = tv.VAE(**OPTIONS)
    with pytest.raises(tv.DivergedError, match=r"parameter encoder.mu.bias holds inf at \(1,\)"):
        vae.fit(bits, callbacks=[Spoil()])


def test_a_collapsed_posterior_is_warned_of(bits):
    vae = tv.VAE(**OPTIONS | {"beta": 1e3, "epochs": 40, "learning_rate": 0.01}).fit(bits)
    warning = vae.history_[-1]["warning"]
    assert "collapsed" in warning
    assert "beta < 1" in warning
    healthy = tv.VAE(**OPTIONS | {"beta": 0.1}).fit(bits)
    assert "warning" not in healthy.history_[-1]


def test_progress_as_json():
    progress = Progress(epoch=2, history=[{"elbo": -1.5}])
    assert progress.as_dict()["best"] is None
    assert Progress.from_dict(progress.as_dict()) == progress


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import tinyvae as tv

path, out, moment, count = sys.argv[1:]
counts = dict.fromkeys(("step", "write", "rename", "renamed"), 0)

def at(here):
    counts[here] += 1
    if (here, counts[here]) == (moment, int(count)):
        os.kill(os.getpid(), signal.SIGKILL)

def fsync(file, fsync=os.fsync):
    at("write")
    fsync(file)

def replace(*paths, replace=os.replace):
    at("rename")
    replace(*paths)
    at("renamed")

class Steps(tv.Callback):
    def on_step(self, *_):
        at("step")

os.fsync, os.replace = fsync, replace
x = (np.random.default_rng(0).random((400, 64)) < 0.3).astype(np.float32)
vae = tv.VAE(4, hidden=(64,), epochs=8, batch_size=50, random_state=1, binarize="dynamic")
resume = Path(path).exists()
vae.fit(x, validation=x[:50], checkpoint=path, resume=resume, callbacks=[Steps()])
vae.save(out)
"""
# Before the first checkpoint; in an epoch; before a file is whole, before it has its name, and when
# it has it: on a disk nothing changes at any other moment. The last is the finished model's.
MOMENTS = [
    ("step", 5), ("write", 1), ("rename", 1), ("renamed", 1), ("step", 11), ("rename", 1),
    ("renamed", 2), ("write", 2), ("step", 1), ("rename", 4),
]  # fmt: skip


def test_kill_9_at_ten_moments(tmp_path):
    """Killed ten times, and resumed each time, a run ends in the same bits."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(name, moment="never", count=0):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        files = str(folder / "c"), str(folder / "model")
        command = [sys.executable, "-c", KILLED, *files, moment, str(count)]
        return subprocess.run(command, env=environment).returncode

    assert start("whole") == 0
    for moment in MOMENTS:
        assert start("killed", *moment) == -signal.SIGKILL, moment
    assert len(tv.load(tmp_path / "killed" / "c").history_) == 8
    assert not (tmp_path / "killed" / "model").exists()
    assert start("killed") == 0
    models = [tv.load(tmp_path / name / "model") for name in ("whole", "killed")]
    assert_same_bits(*(weights(model) for model in models))
    assert without_clock(models[0].history_) == without_clock(models[1].history_)
