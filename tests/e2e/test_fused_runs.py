"""Fused and routed encoders through training, checkpoint, resume, probe and question, as plain ones."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_whisper, tone
from helpers.run_folders import latest_checkpoint

from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import load_model
from uniaudio.commands.ask import answer_file_question
from uniaudio.commands.check import check_run
from uniaudio.commands.probe import run_probe
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.trust import Trust
from uniaudio.errors import UserError
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.reading import load_checkpoint

MOWE = [
    "fusion.kind=mowe",
    "encoders.weak={path: second, train: full}",
    "encoders.other={path: second, train: frozen}",
]
RUNS = {
    "gate with stft": ["fusion={kind: gate, stft: {mels: 16}}"],
    "moe": ["fusion={kind: moe_proj, experts: 4}"],
    "explicit, frozen": [
        "fusion.kind=explicit",
        "encoders.whisper.train=frozen",
        "encoders.second.train=frozen",
    ],
    "lora": ["fusion.kind=concat", "encoders.second.train=lora"],
    "hconv": ["fusion.kind=chconv"],
    "mowe": MOWE,
    "mowe reading the question": [*MOWE, "fusion.reads_prompt=true"],
}


@pytest.fixture
def second(tone_run):
    tiny_whisper(seed=1).save_pretrained(tone_run.parent / "second")
    return "encoders.second={path: second}"


def audio():
    return Ragged.from_rows([torch.from_numpy(tone(1, 300, 0)), torch.from_numpy(tone(0.4, 900, 1))])


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_resumes_probes_and_answers(tone_run, second, name):
    overrides = [second, *RUNS[name]]
    whole = load_run(tone_run, [*overrides, f"output_dir={tone_run.parent / 'whole'}"])
    assert run_training(whole, None) == 0
    part = load_run(tone_run, [*overrides, "train.max_steps=4"])
    assert run_training(part, None) == 0
    out = tone_run.parent / "out"
    assert run_training(load_run(tone_run, overrides), "yes") == 0
    one, other = (load_checkpoint(latest_checkpoint(f)).model for f in (tone_run.parent / "whole", out))
    assert one.keys() == other.keys()
    # the schedule of the part was cut to its four steps, so weights differ; the examples must not
    assert [row["ids"] for row in metrics(out) if "ids" in row] == [
        row["ids"] for row in metrics(tone_run.parent / "whole") if "ids" in row
    ]
    model = load_model(str(out))
    encoder = load_encoder(str(out), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(audio()).frames.values, model.model.encoder(audio()).frames.values, atol=1e-6, rtol=0
        )
    scores = run_probe([str(out)], [f"tones={tone_run.parent / 'tones'}"], seeds=1)["scores"]
    assert scores["tones"][str(out)]["linear"]["mean"] >= 0.5
    assert isinstance(
        answer_file_question(str(out), tone_run.parent / "tones" / "0.wav", "Which tone is it?", 4), str
    )


def test_what_the_model_chose_and_its_losses_are_in_the_metrics(tone_run, second):
    run_training(load_run(tone_run, [second, *MOWE]), None)
    row = next(row for row in metrics(tone_run.parent / "out") if "loss" in row)
    chosen = row["choices"]["tone"]
    assert set(chosen) == {"weak/second", "weak/weak", "weak/other", "routing entropy"}
    assert sum(v for k, v in chosen.items() if k.startswith("weak/")) == pytest.approx(1)
    assert set(row["auxiliary"]) == {"entropy_independent", "entropy_dependent", "diversity"}


def test_only_what_is_trained_is_in_the_checkpoint_and_rates_go_by_component(tone_run, second):
    lora = ["encoders.second={path: second, train: lora, lr: 2e-4}", "fusion={kind: gate, lr: 3e-4}"]
    run_training(load_run(tone_run, lora), None)
    names = set(load_checkpoint(latest_checkpoint(tone_run.parent / "out")).model)
    assert all("lora_" in n for n in names if n.startswith("encoder.encoders.second."))
    assert any(n.startswith("encoder.operator.") for n in names)
    rates = metrics(tone_run.parent / "out")[2]["lr"]
    assert set(rates) == {"whisper", "second", "fusion", "adapter"}
    assert rates["fusion"] / rates["second"] == pytest.approx(1.5)


@pytest.mark.parametrize("load", [load_model, load_encoder])
def test_a_fused_checkpoint_refuses_another_base(tone_run, second, load):
    run_training(load_run(tone_run, [second, "fusion.kind=gate", "train.max_steps=2"]), None)
    tiny_whisper(seed=7).save_pretrained(tone_run.parent / "second")
    with pytest.raises(UserError, match="was trained with the encoder second"):
        load(str(tone_run.parent / "out"), torch.device("cpu"))


def test_an_encoder_of_a_run_is_taken_with_its_lora_merged(tone_run, second):
    """Implicit injection: stage one adapts the second encoder, stage two fuses it frozen."""
    adapted = tone_run.parent / "adapted"
    first = ["encoders.whisper={path: second, train: lora}", f"output_dir={adapted}"]
    run_training(load_run(tone_run, first), None)
    alone = load_encoder(str(adapted), torch.device("cpu"))
    stage_two = load_run(
        tone_run,
        [
            f"encoders.second={{path: {adapted}, train: frozen}}",
            "encoders.whisper.train=frozen",
            "fusion.kind=gate",
        ],
    )
    run_training(stage_two, None)
    fused = load_encoder(str(tone_run.parent / "out"), torch.device("cpu"))
    merged = fused.encoders["second"]
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert any("lora" in name for name, _ in alone.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(
            merged(audio()).frames.values, alone(audio()).frames.values, atol=1e-5, rtol=0
        )
        untouched = load_encoder(str(tone_run.parent / "second"), torch.device("cpu"))
        assert (untouched(audio()).frames.values - merged(audio()).frames.values).abs().max() > 1e-5
    trained = set(load_checkpoint(latest_checkpoint(tone_run.parent / "out")).model)
    assert {
        name.split(".")[0] + "." + name.split(".")[1] for name in trained if name.startswith("encoder")
    } == {"encoder.operator"}
    run_training(load_run(tone_run, ["train.max_steps=6", *first]), "yes")  # the base goes on
    (adapted / "checkpoints" / "latest").unlink()
    for folder in sorted((adapted / "checkpoints").glob("step-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(UserError, match="was trained with the encoder second"):
        load_encoder(str(tone_run.parent / "out"), torch.device("cpu"))


OWN = """
import torch
from torch import nn

from uniaudio import ragged, types
from uniaudio.model.encoders.base import AudioEncoder


class Levels(AudioEncoder):
    frame_rate, reach = 25.0, None

    def __init__(self, path, width=8):
        super().__init__()
        self.dim, self.layer_dims = width, (width,)
        self.line = nn.Linear(1, width)

    def num_frames(self, samples):
        return max(1, samples // 640)

    def forward(self, audio, layers=False, masks=None):
        counts = torch.tensor([self.num_frames(n) for n in audio.lengths.tolist()], dtype=torch.int64)
        rows = [
            nn.functional.pad(w.float(), (0, 640))[: c * 640].view(c, 640).abs().mean(1) / 8000
            for w, c in zip(audio.rows(), counts.tolist())
        ]
        frames = ragged.Ragged(self.line(torch.cat(rows)[:, None]), counts)
        return types.Encoded(frames, (frames,) if layers else None)
"""


def test_an_encoder_class_of_the_user(tone_run, monkeypatch):
    (tone_run.parent / "my_levels.py").write_text(OWN)
    monkeypatch.chdir(tone_run.parent)
    single = "{kind: 'my_levels:Levels', settings: {width: 6}, lr: 1e-2}"
    alone = [f"encoders={{levels: {single}}}"]
    with pytest.raises(
        UserError, match=r"encoders.levels: needs code of its own \(my_levels:Levels\); give --allow"
    ):
        run_training(load_run(tone_run, alone), None)
    assert "my_levels" not in sys.modules
    allowed = Trust(code=True)
    run_training(load_run(tone_run, alone, allowed), None)
    encoder = load_encoder(str(tone_run.parent / "out"), torch.device("cpu"))
    assert (type(encoder).__name__, encoder.dim) == ("Levels", 6)
    fused = [f"encoders.levels={single}", "fusion.kind=gate", f"output_dir={tone_run.parent / 'fused'}"]
    run_training(load_run(tone_run, fused, allowed), None)
    wrong = "encoders={levels: {kind: 'my_levels:Levels', settings: {no: 1}}}"
    with pytest.raises(UserError, match="does not take these settings"):
        run_training(load_run(tone_run, [wrong, f"output_dir={tone_run.parent / 'wrong'}"], allowed), None)
    with pytest.raises(UserError, match=r"encoders\.levels\.settings\.no: null -> 1"):
        run_training(load_run(tone_run, [wrong], allowed), "auto")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere:Nothing", "cannot be imported"),
        ("pathlib:Path", "is not a subclass of uniaudio's AudioEncoder"),
    ],
)
def test_an_encoder_class_that_is_none_is_reported(tone_run, kind, message):
    with pytest.raises(UserError, match=message):
        run_training(load_run(tone_run, [f"encoders.whisper.kind={kind}"], Trust(code=True)), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fusion.kind=gate"], "fusion.kind gate needs a second encoder"),
        (["encoders.second.path=second"], "2 encoders need `fusion"),
        (["encoders.second.path=second", "fusion.kind=gaet"], "did you mean 'gate'"),
        (
            ["encoders.whisper.train=lora", "encoders.whisper.lora.targets=[no_such]"],
            "'no_such' matches no linear layer; there are fc1",
        ),
        (["encoders.second.path=second", "fusion={kind: gate, rate: 80}"], "no encoder gives 80 frames"),
        (
            ["encoders.second.path=second", "fusion={kind: moe_proj, experts: 2, top_k: 3}"],
            "fusion: top_k 3 is more than the 2 experts",
        ),
        (["encoders.whisper.kind=wavlm"], "holds a whisper model, but kind says wavlm"),
        (["encoders.whisper.kind=wisper"], "did you mean 'whisper'"),
        (["encoders.whisper.path=qwen"], "holds a qwen3 model, which is not a known audio encoder"),
        (["encoders.whisper.chunk_seconds=10"], "a whisper encoder has no such setting"),
        (["encoders.whisper.settings={a: 1}"], "only your own encoder class"),
    ],
)
def test_mistakes_end_with_one_sentence(tone_run, second, overrides, message):
    for look in (lambda config: run_training(config, None), check_run):
        with pytest.raises(UserError) as output:
            look(load_run(tone_run, overrides))
    assert message in str(output.value)
    assert "\n" not in str(output.value)
    assert not Path(tone_run.parent / "out" / "metrics.jsonl").exists()
