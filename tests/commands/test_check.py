"""`uniaudio check` on data: the reason why rows cannot be used, missing columns by name, what is skipped."""

import io
import json
import math

import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import add, clip_bytes, write_tar
from rich.console import Console
from transformers import Qwen3Config, WhisperConfig

from uniaudio.checks.first_rows import estimate_average_clip
from uniaudio.commands.check import check_run
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError

STAGE = {"name": "one", "recipe": "r", "steps": 1, "budget": {"audio_seconds": 6}}
RUN = {
    "encoders": {"whisper": {"path": "someone/whisper"}},
    "decoder": {"path": "someone/decoder"},
    "data": {"workers": 0},
    "train": {"micro_batches": 1},
    "stages": [STAGE],
}


@pytest.fixture
def setup(tmp_path, hub):
    """A run over ``data/manifest.jsonl`` whose models are on a Hub, with nothing but their configurations."""
    for name, config in {
        "whisper": WhisperConfig(d_model=48, encoder_layers=1),
        "decoder": Qwen3Config(),
    }.items():
        config.save_pretrained(tmp_path / "hub" / "models" / "someone" / name)
        (tmp_path / "hub" / "models" / "someone" / name / "model.safetensors").touch()
    (tmp_path / "data").mkdir()
    rows = []
    for n, label in enumerate(("low", "mid", "high")):
        (tmp_path / "data" / f"{n}.wav").write_bytes(clip_bytes(n))
        rows.append({"audio": f"{n}.wav", "category": label})
    write_rows(tmp_path, rows)
    files = {
        "run.yaml": {"output_dir": str(tmp_path / "out"), **RUN},
        "r.yaml": {"recipe": "r", "train": [{"dataset": "d", "template": "t"}]},
        "t.yaml": {"task": "t", "domain": "sound", "inputs": ["label"], "prompts": ["<audio>?"]},
        "d.yaml": {"dataset": "d", "load": {"jsonl": "data"}, "license": "CC0-1.0", "splits": {"train": {}}},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(dump_yaml(content))
    change(tmp_path, "t.yaml", target="{{ label }}")
    change(tmp_path, "d.yaml", columns={"label": "{{ category }}"})
    return tmp_path


def write_rows(folder, rows):
    (folder / "data" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(folder, name, **changes):
    content = {**load_yaml(folder / name), **changes}
    (folder / name).write_text(dump_yaml({key: value for key, value in content.items() if value is not None}))


def check(folder):
    screen = io.StringIO()
    check_run(load_run(str(folder / "run.yaml"), []), Console(file=screen, width=200))
    return screen.getvalue()


def test_guarded_sets_are_looked_at(setup):
    write_rows(setup, 20 * [{"audio": "1.wav", "category": "mid"}])
    change(setup, "run.yaml", guard={"sets": {"old": "nowhere"}, "every": 5})
    with pytest.raises(UserError, match=r"^guard\.sets old=nowhere: there is no such folder$"):
        check(setup)


def test_the_adapter_has_the_size_that_it_has_before_this_decoder(setup):
    """``stack`` of 4 frames, 48 wide: a norm, and maps to the decoder's width and from there to itself."""
    width = Qwen3Config().hidden_size
    size = 2 * 192 + 192 * width + width + width * width + width
    text = check(setup)
    assert f"adapter stack: {size:,} parameters\n" in text
    assert "the adapter has more parameters than all encoders" in text
    change(setup, "run.yaml", adapter={"kind": "stack", "hidden": 4})
    text = check(setup)
    assert f"adapter stack: {2 * 192 + 192 * 4 + 4 + 4 * width + width:,} parameters\n" in text
    assert "the adapter has more parameters" not in text


def test_a_guarded_set_with_one_class_is_named_and_costs_nothing_else(setup):
    write_rows(setup, 20 * [{"audio": "1.wav", "category": "mid"}])
    for name, labels in (("one", "aaa"), ("good", "aba")):
        (setup / name).mkdir()
        lines = zip(labels, ("train", "train", "test"), strict=True)
        text = "".join(f"../data/1.wav,{label},{split}\n" for label, split in lines)
        (setup / name / "manifest.csv").write_text(f"audio,label,split\n{text}")
    change(setup, "run.yaml", guard={"sets": {"one": "one", "good": "good"}, "every": 5})
    printed = check(setup)
    assert "guard: one is left out: 'label' names 1 class, too few to probe" in printed
    assert "ok: no mistake found" in printed
    change(setup, "run.yaml", guard={"sets": {"one": "one"}, "every": 5})
    with pytest.raises(UserError, match=r"^task one: 'label' names 1 class, too few to probe$"):
        check(setup)


def test_the_first_row_may_lack_a_column(setup):
    write_rows(setup, [{"audio": "0.wav"}, *20 * [{"audio": "1.wav", "category": "mid"}]])
    assert "ok" in check(setup)
    assert estimate_average_clip(load_recipe(str(setup / "r.yaml"))).seconds == pytest.approx(0.1)


def slow_down(setup, **speed):
    """Let training change the speed of all clips, of 0.1 s, which cost nothing beside their length."""
    change(setup, "r.yaml", train=[{"dataset": "d", "template": "t", "augment": [{"speed": speed}]}])


def test_estimates_count_clips_as_long_as_a_change_of_speed_makes_them(setup):
    change(setup, "run.yaml", stages=[STAGE | {"budget": {"audio_seconds": 6, "per_example": 0}}])
    assert "one step: about 60 examples, 6 s of audio" in check(setup)
    slow_down(setup, factor=[0.5, 1.0])
    clip = estimate_average_clip(load_recipe(str(setup / "r.yaml")))
    assert clip.seconds == pytest.approx(0.1 * 2 * math.log(2))
    assert clip.budget_seconds == pytest.approx(0.2)
    assert "one step: about 30 examples, 4 s of audio" in check(setup)  # 30 clips of 0.139 s


def test_a_budget_is_refused_that_the_average_clip_exceeds_when_it_is_slowed_down(setup):
    change(setup, "run.yaml", stages=[STAGE | {"budget": {"audio_seconds": 0.15, "per_example": 0}}])
    assert "ok" in check(setup)
    slow_down(setup, factor=[0.5, 2.0])
    with pytest.raises(UserError, match=r"0\.15 is less than the average clip of d:t costs \(0\.2\)"):
        check(setup)


def test_columns_that_are_not_there_are_named_with_those_that_are(setup):
    change(setup, "d.yaml", columns={"label": "{{ categry }}"})
    message = (
        r"columns\.label: uses 'categry' \(did you mean 'category'\?\), but the columns of the rows are a"
    )
    with pytest.raises(UserError, match=message):
        check(setup)
    with pytest.raises(UserError, match=message):  # what `plan` reads
        estimate_average_clip(load_recipe(str(setup / "r.yaml")))
    change(setup, "d.yaml", columns={})
    with pytest.raises(
        UserError, match="template t needs label, but the columns are audio, category; add it under"
    ):
        check(setup)
    pq.write_table(
        pyarrow.table({"audio": [b"x"], "category": ["a"], "more": [1]}), setup / "data" / "d.parquet"
    )
    change(setup, "d.yaml", load={"parquet": "data"})
    with pytest.raises(
        UserError, match="template t needs label, but the columns are category, more; add it under"
    ):
        check(setup)


def test_an_unused_column_of_a_card_may_be_wrong(setup):
    change(setup, "d.yaml", columns={"label": "{{ category }}", "other": "{{ nowhere }}"})
    assert "ok" in check(setup)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"audio": "gone.wav", "category": "a"}], r"gone\.wav: missing file: \S+gone\.wav"),
        ([{"audio": 5, "category": "a"}], "no audio path or bytes"),
        (
            [{"audio": "0.wav", "category": None}],
            r"0\.wav: missing column: .*columns\.label: 'category' has no value",
        ),
        ([{"audio": "0.wav", "category": ["a"]}], "template error: .*a list is not text"),
    ],
)
def test_the_reason_of_the_first_row_is_reported_where_none_can_be_used(setup, rows, reason):
    write_rows(setup, rows)
    with pytest.raises(
        UserError, match=rf"dataset d, split train: none of the first 1 rows can be used \(.*{reason}"
    ):
        check(setup)


def test_samples_of_archives_that_cannot_be_used_say_why(setup):
    import tarfile

    with tarfile.open(setup / "data" / "dots.tar", "w") as tar:
        for n in range(2):
            add(tar, f"utt.{n}.wav", clip_bytes(n))
    change(setup, "d.yaml", load={"webdataset": "data/dots.tar"})
    with pytest.raises(UserError, match=r"none of the first \d rows can be used \(.*dots/utt"):
        check(setup)


def test_what_is_skipped_is_reported(setup):
    write_tar(setup / "data" / "set_train.tar", [1, 3])
    write_tar(setup / "data" / "set_test.tar", [2])
    change(setup, "d.yaml", load={"webdataset": "data"}, columns={"label": "{{ text }}"})
    text = check(setup)
    assert "d:t, split train: skipped: file of another split (1), no .tar file (4)" in text


def test_answers_that_may_be_numbers_of_classes_are_reported(setup):
    write_rows(setup, [{"audio": f"{n}.wav", "category": n} for n in range(3)])
    assert "all answers seen are whole numbers (0, 1, 2); if they are class numbers" in check(setup)
    change(setup, "t.yaml", labels=[0, 1, 2])
    assert "whole numbers" not in check(setup)


@pytest.mark.parametrize("path", ["/nowhere/decoder", "./decoder", "data/decoder", "a/b/c"])
def test_a_decoder_folder_that_is_not_there_is_refused(setup, path):
    change(setup, "run.yaml", decoder={"path": path})
    with pytest.raises(UserError, match=r"decoder\.path: there is no folder"):
        check(setup)
