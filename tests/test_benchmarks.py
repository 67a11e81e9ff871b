"""The benchmarks' own logic: what they count, leave out, judge and write; no timing."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import types

import numpy as np
import pytest

import simt
import tinyvae_kernels
from benchmarks import (
    _cells,
    _kernel_cases,
    _kernel_once,
    _step_worker,
    family,
    gpu,
    kernels,
    train_step,
)


def test_every_pair_has_a_row():
    assert _kernel_cases.missing(tinyvae_kernels) == []


def test_bytes_are_inputs_once_and_outputs_once():
    elbo = _kernel_cases.KERNELS["bernoulli_elbo"]
    B, D, Z = 8192, 3072, _kernel_cases.Z
    assert elbo.bytes(B, D, "forward") == 4 * (2 * B * D + 2 * B * Z + B)
    assert elbo.bytes(B, D, "gradient") == 4 * (3 * B * D + 4 * B * Z + 2 * B)
    assert _kernel_cases.KERNELS["adam_update"].bytes(3, 5, "forward") == 4 * 7 * 15
    # dmu is dout itself: mu, logvar, eps, dout are read, z and dlogvar written
    assert _kernel_cases.KERNELS["reparameterize"].bytes(3, 5, "gradient") == 4 * 6 * 15


def test_a_kernel_once_finds_what_is_wrong(monkeypatch):
    monkeypatch.setattr(_kernel_once, "SIZES", [(2, 33)])
    with simt.device() as device:
        assert _kernel_once.check_all(device.xp.asarray, device.xp.asnumpy) == []

        def scaled(a):
            return device.xp.asnumpy(a) * a.dtype.type(1.1)

        wrong = _kernel_once.check_all(device.xp.asarray, scaled)
    assert any("gaussian_kl float32" in text for text in wrong)


# -------------------------------------------------------------------------------------- kernels
def row(name="bernoulli_elbo", mode="gradient", size=(8192, 3072), ratios=None, of_copy=0.8):
    ratios = {"jax": 0.4} if ratios is None else ratios
    best = max(ratios, key=ratios.get)
    return {
        "kernel": name, "mode": mode, "size": list(size), "of_copy": of_copy, "best_peer": best,
        "ratios": {p: {"median": r} for p, r in ratios.items()}, "to_best": ratios[best],
    }  # fmt: skip


def kept(rows, device):
    return [verdict for verdict, _ in kernels.verdicts(rows, device)]


def test_targets_on_a_cpu():
    assert kept([row()], "cpu") == [True, True, True]
    assert kept([row(of_copy=0.7)], "cpu") == [True, False, True]
    assert kept([row(ratios={"jax": 0.51, "torch": 0.1})], "cpu") == [False, True, True]
    slow = row("im2col", ratios={"jax": 1.01})
    assert kept([slow], "cpu") == [False]
    assert "im2col gradient 8192x3072: 1.01" in kernels.verdicts([slow], "cpu")[0][1]
    assert kept([], "cpu") == []
    assert kernels.verdicts([row()], "cpu", left_out=1)[-1][0] is False


def test_targets_on_a_gpu():
    large = {"size": (65536, 3072)}
    assert kept([row(**large, of_copy=0.9, ratios={"compile": 1.0, "torch": 0.33})], "cuda") == [
        True, True, True,
    ]  # fmt: skip
    assert kept([row(**large, ratios={"compile": 1.1, "torch": 0.34})], "cuda") == [False] * 3
    assert kept([row("im2col", ratios={"compile": 0.5})], "cuda") == [True, True]


def test_rows_beyond_the_budget_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda *_: {"errors": {}})
    rows = kernels.plan(["bernoulli_elbo", "adam_update"], [(2, 3), (4, 5)], 1.0)
    order = [(k.name, size, mode) for k, size, mode in rows]
    assert order[0] == ("bernoulli_elbo", (4, 5), "gradient")
    assert order[1] == ("adam_update", (4, 5), "forward")
    assert order[-1] == ("bernoulli_elbo", (2, 3), "forward")
    seen = []
    found = kernels.run(rows, [], {"budget_s": -1.0}, seen.append)
    assert found["rows"] == []
    assert found["left_out"][0] == "bernoulli_elbo gradient 4x5"
    assert len(found["left_out"]) == len(rows)
    assert len(kernels.run(rows, [], {"budget_s": None}, seen.append)["rows"]) == len(rows)


def test_peers_that_found_something_else_are_noticed():
    ours = [[3.0, 10.0], [0.0, 4.0]]
    assert kernels._agree(ours, [[3.0001, 10.0], [0.0001, 4.0]])
    assert not kernels._agree(ours, [[3.1, 10.0], [0.0, 4.0]])
    assert not kernels._agree(ours, [[3.0, 10.0], [0.0, 4.1]])
    assert not kernels._agree(ours, [[3.0, 10.0]])


# ------------------------------------------------------------------------------------------ gpu
@pytest.fixture
def gpu_stand_in(request):
    """The fixture `gpu`, whose name is that of a benchmark here."""
    return request.getfixturevalue("gpu")


def test_pytest_reports_are_counted():
    xml = """<testsuites><testsuite>
      <testcase classname="a" name="good"/>
      <testcase classname="a" name="off"><skipped message="no"/></testcase>
      <testcase classname="a" name="bad"><failure message="1 != 2">text</failure></testcase>
      <testcase classname="a" name="worse"><error message="broken"/></testcase>
    </testsuite></testsuites>"""
    found = gpu.counted(xml)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"][0] == {"test": "a::bad", "message": "1 != 2"}


def test_the_sanitizers_own_verdict():
    assert gpu.verdict("x\n========= ERROR SUMMARY: 0 errors\n") == "ERROR SUMMARY: 0 errors"
    text = "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
    assert gpu.verdict(text).startswith("RACECHECK SUMMARY: 1 hazard")
    assert gpu.verdict("Device not supported") == "no summary"


def test_a_command_is_stopped_in_time(monkeypatch, tmp_path):
    """The time begins when it has printed something: a busy machine may take long to start it."""
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    waiting = os.open(begun, os.O_RDWR | os.O_NONBLOCK)

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                select.select([waiting], [], [], 300)
            return super().wait(timeout)

    code = """
import signal, sys
print(1, flush=True)
open(sys.argv[1], "w").write(".")
signal.pause()
"""
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Process)
        found = gpu.limited([sys.executable, "-c", code, str(begun)], 0.5)
    os.close(waiting)
    assert found["code"] is None
    assert found["error"] == "stopped after 0 s"
    assert found["output"] == "1\n"
    assert gpu.limited(["true"], 0)["error"] == "no time was left"
    assert gpu.limited([sys.executable, "-c", "raise SystemExit(3)"], 300)["code"] == 3


def test_a_part_that_fails_spoils_no_other(monkeypatch, tmp_path, capsys):
    def broken(clock, folder):
        raise OSError("no such thing")

    parts = {"tests": broken, "kernels": lambda clock, folder: {"summary": "9 rows", "text": "t"}}
    monkeypatch.setattr(gpu, "PARTS", parts)
    path = tmp_path / "gpu.json"
    assert gpu.run(["tests", "kernels"], 60, {"gpu": {"name": "none"}}, path) == 1
    found = json.loads(path.read_text())["parts"]
    assert found["tests"]["error"] == "OSError: no such thing"
    assert found["kernels"].keys() == {"summary", "seconds"}
    assert "9 rows" in capsys.readouterr().out
    assert gpu.run(["kernels"], 60, {}, path) == 0


class Line:
    """A worker that answers what it is told to, and one that ends."""

    def __init__(self, peer, losses, ends=False):
        self.peer, self.losses, self.ends, self.started = peer, losses, ends, 0

    def ask(self, **request):
        if self.ends:
            raise RuntimeError(f"{self.peer} ended with code 1, see above")
        return [{"variant": v, "loss": loss, "states": ["ready"]} for v, loss in self.losses]

    def round(self, variant):
        return {"tinyvae": 1.0 + variant, "torch": 3.0}.get(self.peer, 1e3), True

    def start(self):
        self.started += 1


def test_a_peer_that_ends_is_left_out_of_a_cell():
    lines = [
        Line("tinyvae", [("captured", 5.0), ("uncaptured", 5.0)]), Line("torch", [("", 5.1)]),
        Line("compile", [], ends=True), Line("sgemm", [("", 0.0)]), Line("copy", [("", 0.0)]),
    ]  # fmt: skip
    cell = _cells.Cell("mlp", 16, 32)
    row = train_step.measure(lines, cell, {"device": "cuda", "precision": "float32"}, 3, 0.1)
    assert row["failed"] == {"compile": "compile ended with code 1, see above"}
    assert lines[2].started == 1
    assert (row["best_peer"], row["ratios"]["torch"]["median"]) == ("torch", 1 / 3)
    assert row["captured"] == {
        "states": ["ready"], "same_loss": True, "median_ms": 1.0, "uncaptured_ms": 2.0,
    }  # fmt: skip
    assert "the same" in train_step.show({cell.name: row})
    assert gpu.compared({"mlp-128-400": row}) == "mlp-128-400 3.00 of torch (goal 1.5)"
    assert train_step.wrong({cell.name: row}) == []
    row["captured"]["same_loss"] = False
    assert train_step.wrong({cell.name: row}) == [cell.name]
    assert "DIFFERENT" in train_step.show_captured({cell.name: row})
    del row["captured"]
    assert train_step.show_captured({cell.name: row}) == ""
    lines[0].ends = True
    with pytest.raises(RuntimeError, match="tinyvae ended"):
        train_step.measure(lines, cell, {"device": "cuda", "precision": "float32"}, 3, 0.1)


def test_our_step_is_measured_captured_and_uncaptured(gpu_stand_in):
    cell, place = _cells.Cell("mlp", 4, 8), _step_worker.Place("cuda", "tf32")
    with contextlib.ExitStack() as stack:
        variants = _step_worker._tinyvae(cell, stack, place)
        losses = [[variant.step() for _ in range(4)] for variant in variants]
        assert [v.name for v in variants] == ["captured", "uncaptured"]
        assert [v.states() for v in variants] == [["ready"], []]
    assert losses[0] == losses[1]
    products = [call for call in gpu_stand_in.library.calls if call[0] == "cublasGemmEx_64"]
    assert {call[-1] for call in products} == {77}


def test_time_that_is_left():
    now = [0.0]
    clock = gpu.Clock(10, lambda: now[0])
    assert clock.at_most(4) == 4
    now[0] = 8.0
    assert clock.at_most(4) == 2
    now[0] = 20.0
    assert clock.left() == 0


@pytest.mark.parametrize("name", _kernel_cases.KERNELS)
def test_arrays_have_the_shapes_that_their_bytes_count(name):
    kernel = _kernel_cases.KERNELS[name]
    arrays = kernel.arrays(3, 100)
    assert [a.shape for a in arrays] == [a.shape(3, 100) for a in kernel.arguments]
    assert sum(a.nbytes for a in arrays) <= kernel.bytes(3, 100, "forward")
    assert all(np.isfinite(a).all() for a in arrays)


@pytest.mark.parametrize("name", family.VARIANTS)
def test_every_variant_of_the_family_is_measured(name, rng):
    pixels = rng.integers(0, 256, (24, 4, 4, 1), dtype=np.uint8)
    data = types.SimpleNamespace(train=pixels, test=pixels[:5])
    found, log_p = family.measure(
        family.VARIANTS[name], data, 3, epochs=1, latent_dim=3, hidden=[5], batch_size=12
    )
    assert log_p.shape == (5,)
    assert found["log_likelihood"] == pytest.approx(log_p.mean())
    assert found["elbo"] == pytest.approx(-(found["nll"] + found["kl"]))


def test_a_run_of_the_family_is_kept_and_made_again_for_other_settings(tmp_path):
    made = []

    def make():
        made.append(len(made))
        return {"elbo": -1.5}, np.arange(3.0) + len(made)

    path = tmp_path / "runs" / "vae-0.npz"
    for settings, runs in (({"epochs": 1}, 1), ({"epochs": 1}, 1), ({"epochs": 2}, 2)):
        found, log_p = family.kept(path, settings, make)
        assert (found, len(made)) == ({"elbo": -1.5}, runs)
        np.testing.assert_array_equal(log_p, np.arange(3.0) + runs)


def test_variants_of_the_family_are_compared_row_by_row_and_seed_by_seed(rng):
    base = rng.standard_normal((2, 50))
    better = base + np.array([[1.0], [2.0]])  # the same gain for each row
    log_p = {"vae": [*base], "vae-5": [*better], "iwae-5": [*(better + base)]}
    pairs = {(p["variant"], p["above"]): p for p in family.compared(log_p)}
    assert set(pairs) == {("vae-5", "vae"), ("iwae-5", "vae"), ("iwae-5", "vae-5")}
    assert pairs["vae-5", "vae"]["gain"] == pytest.approx(1.5)
    assert pairs["vae-5", "vae"]["each_seed"] == pytest.approx([1.0, 2.0])
    assert pairs["vae-5", "vae"]["error"] == pytest.approx(0, abs=1e-12)
    found, gain = pairs["iwae-5", "vae-5"], base.mean(axis=0)
    assert found["gain"] == pytest.approx(gain.mean())
    assert found["error"] == pytest.approx(gain.std() / 50**0.5)
