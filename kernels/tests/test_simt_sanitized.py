"""Every kernel under the sanitizers, and planted mistakes: the checkers are checked.

These tests need g++ with its libasan, libubsan and libtsan, and fail where they are missing.
"""

from __future__ import annotations

import functools
import json

import pytest

from simt import build, plants, preload

BUILDS = list(build.BUILDS)


@pytest.mark.parametrize("in_build", ["address", "thread"])
def test_all_kernels_run_without_a_report(in_build):
    done = preload.run("simt.sanitized", in_build)
    assert done.returncode == 0, done.stderr[-10_000:]
    assert "all of the table, without a report" in done.stdout


@functools.cache
def findings(in_build: str) -> dict[str, dict[str, str]]:
    """{instance: {checker: what it said}}."""
    done = preload.run("simt.plants", in_build)
    assert done.returncode == 0, done.stderr[-10_000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", plants.FOUND_BY)
def test_planted_mistake_is_found(name):
    found = {who for in_build in BUILDS for who in findings(in_build)[plants.instance(name, True)]}
    assert plants.FOUND_BY[name] <= found


@pytest.mark.parametrize("in_build", BUILDS)
@pytest.mark.parametrize("name", plants.FOUND_BY)
def test_correct_twin_passes_everywhere(name, in_build):
    assert findings(in_build)[plants.instance(name, False)] == {}


def test_every_plant_is_run():
    text = build.text_of("plants.cu")
    own = text[text.index("read_out_of_bounds") :]
    assert own.count("__global__") + 1 == len(plants.FOUND_BY)
