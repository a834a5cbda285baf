"""Small files of every kind of source, written by the tests themselves."""

import filecmp
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import soundfile

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.audio import decode
from uniaudio.data.card import load_card
from uniaudio.data.sources.base import Row


def card(tmp_path, load, **more):
    content = {"dataset": "set", "load": load, "license": "CC0-1.0", "splits": {"train": {}}, **more}
    path = tmp_path / "set.yaml"
    path.write_text(dump_yaml(content))
    return load_card(str(path))


def clip_bytes(value, format="WAV", count=1600):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(count, value, np.int16), 16000, format=format)
    return buffer.getvalue()


def write_parquet(folder, files=2, rows=5, group=3):
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(files):
        table = [
            {
                "audio": {"bytes": clip_bytes(i), "path": f"{i}.wav"},
                "label": "even" if i % 2 == 0 else "odd",
                "n": i,
            }
            for i in range(part * rows, (part + 1) * rows)
        ]
        name = f"train-{part:05d}-of-{files:05d}.parquet"
        pq.write_table(pyarrow.Table.from_pylist(table), folder / name, row_group_size=group)


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, numbers, format=tarfile.PAX_FORMAT, folder=""):
    """Samples as xares-llm has them: audio and json, here with text files too and one long name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for n in numbers:
            name = f"{folder}{'ü' * 60 if n % 3 == 0 else ''}{n:04d}"
            add(tar, f"{name}.flac", clip_bytes(n, "FLAC", 1600 + n))
            add(tar, f"{name}.json", json.dumps({"n": n, "duration": (1600 + n) / 16000}).encode())
            if n % 2:
                add(tar, f"{name}.txt", f"text {n}\n".encode())


def compress(path, suffix):
    """Write a file compressed beside itself, as ``a.tar.gz`` of ``a.tar``, and return the new path."""
    codec = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[suffix]
    packed = path.with_name(path.name + suffix)
    with pyarrow.CompressedOutputStream(str(packed), codec) as stream:
        stream.write(path.read_bytes())
    return packed


def numbers(rows):
    result = []
    for row in rows:
        assert isinstance(row, Row), row
        result.append((row.columns["n"], int(decode(row.audio[0].source, 1, row.key)[0])))
    return result


def several_questions(folder):
    """Write the recipe `several` beside `tone_run`'s: three questions about a tone, some with text before the clip."""
    wordings = {"word": ["<audio>Say it.", "What?<audio>"], "twice": ["<audio>Say the tone twice."]}
    for name, prompts in wordings.items():
        target = "{{ label }} {{ label }}" if name == "twice" else "{{ label }}"
        keys = {"task": name, "domain": "sound", "inputs": ["label"], "prompts": prompts, "target": target}
        (folder / f"{name}.yaml").write_text(dump_yaml(keys))
    rows = {"dataset": "tones", "template": ["tone", "word", "twice"]}
    (folder / "several.yaml").write_text(dump_yaml({"recipe": "several", "train": [rows]}))


def assert_same_files(one, other):
    """Compare two folders, all that is below them included, byte by byte."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])
