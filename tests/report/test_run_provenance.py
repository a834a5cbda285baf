"""What a page says of the data of a run."""

import hashlib

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.report.run_provenance import hash_card


def test_a_hash_covers_the_manifests_of_all_splits(tmp_path):
    folder, card = tmp_path / "clips", tmp_path / "clips.yaml"
    folder.mkdir()
    facts = {"dataset": "clips", "license": "CC0-1.0", "load": {"jsonl": str(folder)}}
    card.write_text(dump_yaml({**facts, "splits": {"train": {}, "test": {"name": "test"}}}))
    assert hash_card(load_card(str(card))) == "no manifest found"
    contents = {"train.jsonl": b'{"audio": "a.wav"}\n', "test.jsonl": b'{"audio": "b.wav"}\n'}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    both = hashlib.sha256(b"".join(contents.values())).hexdigest()
    assert hash_card(load_card(str(card))) == f"manifests {both[:12]}"
    (folder / "test.jsonl").unlink()
    one = hashlib.sha256(contents["train.jsonl"]).hexdigest()
    assert hash_card(load_card(str(card))) == f"manifest {one[:12]}"
