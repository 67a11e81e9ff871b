"""The README's Python blocks run as they stand, and its map names what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyvae_kernels

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_map_names_what_exists():
    places = re.findall(
        r"^\|.*\| `([^`]+\.(?:py|md))`(?:: `(\w+)`)? \|$", README, flags=re.MULTILINE
    )
    assert len(places) >= 15
    for path, name in places:
        text = (ROOT / path).read_text()
        assert not name or f"def {name}(" in text, f"{path} has no {name}"


@pytest.mark.parametrize("name", ["01_vae_by_hand", "02_own_encoder"])
def test_examples_run(name, tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert "test ELBO" in done.stdout


def test_the_kernels_readme_lists_every_pair():
    text = (ROOT / "kernels" / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(tinyvae_kernels.PAIRS)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "kernels/README.md", "exec"), {})
