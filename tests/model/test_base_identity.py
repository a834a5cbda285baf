"""What identifies the models that a run was trained from."""

import json

import numpy as np
import pytest
from conftest import tiny_whisper
from safetensors.numpy import save_file

from uniaudio.build.result_fingerprints import fingerprint_base
from uniaudio.model import base_identity
from uniaudio.model.base_identity import TOKENIZER_FILES, identify_base


@pytest.fixture
def folder(tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    (tmp_path / "whisper" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    return tmp_path / "whisper"


def list_changes(before, after):
    return [key for key in before if before[key] != after[key]]


def test_config_weights_and_the_files_beside_them_count(folder):
    start = identify_base(str(folder), None)
    assert [*start] == ["path", "sha256", "files_sha256"]
    (folder / "README.md").write_text("about it")
    assert identify_base(str(folder), None) == start
    assert identify_base(f"random:{folder}", None)["sha256"] == start["sha256"]
    extractor = folder / "preprocessor_config.json"
    extractor.write_text('{"do_normalize": false}')
    assert list_changes(start, identify_base(str(folder), None)) == ["files_sha256"]
    extractor.unlink()
    assert list_changes(start, identify_base(str(folder), None)) == ["files_sha256"]
    extractor.write_text('{"do_normalize": true}')
    assert identify_base(str(folder), None) == start
    (folder / "processor_config.json").write_text("{}")
    assert list_changes(start, identify_base(str(folder), None)) == ["files_sha256"]
    (folder / "processor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 1}))
    assert list_changes(start, identify_base(str(folder), None)) == ["sha256"]


def test_of_a_decoder_the_tokenizer_counts_and_not_the_extractor(folder):
    start = identify_base(str(folder), None, TOKENIZER_FILES)
    (folder / "preprocessor_config.json").unlink()
    assert identify_base(str(folder), None, TOKENIZER_FILES) == start
    (folder / "tokenizer.json").write_text("{}")
    assert list_changes(start, identify_base(str(folder), None, TOKENIZER_FILES)) == ["files_sha256"]


@pytest.mark.parametrize("place", [0.02, 0.5, 0.77, 1.0])
def test_weights_far_inside_a_large_file_count(tmp_path, monkeypatch, place):
    """Half a mebibyte of 40, of which 8 are read."""
    monkeypatch.setattr(base_identity, "HASHED_WHOLE", 2**20)
    (tmp_path / "config.json").write_text("{}")
    weights = np.zeros(10 * 2**20, np.float32)
    save_file({"a": weights}, tmp_path / "model.safetensors")
    start, fingerprint = identify_base(str(tmp_path), None), fingerprint_base(str(tmp_path))
    first = int(place * (len(weights) - 2**17))
    weights[first : first + 2**17] = 1
    save_file({"a": weights}, tmp_path / "model.safetensors")
    changed = list_changes(start, identify_base(str(tmp_path), None))
    assert changed == (["sha256", "files_sha256"] if first < 2**18 else ["files_sha256"])
    assert fingerprint_base(str(tmp_path)) != fingerprint


def test_the_whole_header_counts(tmp_path, monkeypatch):
    """The name of the last of many tensors."""
    monkeypatch.setattr(base_identity, "HASHED_WHOLE", 0)
    monkeypatch.setattr(base_identity, "BLOCK", 2)
    (tmp_path / "config.json").write_text("{}")
    hashes = set()
    for last in ("za", "zb"):
        names = [f"{'long' * 100}{number:03d}" for number in range(100)]
        save_file({name: np.zeros(1, np.float32) for name in (*names, last)}, tmp_path / "model.safetensors")
        hashes.add(identify_base(str(tmp_path), None)["files_sha256"])
    assert len(hashes) == 2
