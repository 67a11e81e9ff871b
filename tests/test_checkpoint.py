import json
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from tinyvae import checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)}
    checkpoint.write(path, arrays, {"model": "VAE", "seed": 3})
    return path


def test_round_trip(saved):
    arrays, description = checkpoint.read(saved)
    assert description == {"model": "VAE", "seed": 3}
    assert arrays["w"].dtype == np.float32
    np.testing.assert_array_equal(arrays["w"], np.arange(6).reshape(2, 3))
    assert int(arrays["steps"]) == 7
    assert os.listdir(saved.parent) == [saved.name]


def test_the_file_is_readable_like_any_other(saved):
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1])
def test_truncated(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        checkpoint.read(saved)


def test_an_altered_array_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="was altered after it was written"):
        checkpoint.read(saved)


def test_an_altered_description_is_noticed(saved):
    content = saved.read_bytes()
    assert content.count(rb"\"seed\": 3") == 1
    saved.write_bytes(content.replace(rb"\"seed\": 3", rb"\"seed\": 4"))
    with pytest.raises(ValueError, match="was altered after it was written"):
        checkpoint.read(saved)


def test_other_software(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match="not one that tinyvae wrote"):
        checkpoint.read(path)
    save_file({"w": np.ones(3, np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has format 'pt', expected 'tinyvae-1'"):
        checkpoint.read(path)
    path.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(ValueError, match="from other software"):
        checkpoint.read(path)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        checkpoint.read(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(saved, {"w": np.zeros(3)}, {})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_write_json(tmp_path):
    checkpoint.write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_prefixes():
    arrays = {"w": np.ones(1), "b": np.zeros(1)}
    both = checkpoint.prefixed("network", arrays) | checkpoint.prefixed("best", arrays)
    assert checkpoint.part("network", both).keys() == arrays.keys()
    assert set(both) == {"network.w", "network.b", "best.w", "best.b"}
