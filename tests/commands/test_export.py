"""``uniaudio export`` on a run that was really trained: what is written, said and refused."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import tiny_whisper
from helpers.checkpoints import save_miniature
from helpers.runs import suite_results
from huggingface_hub import ModelCard
from pydantic import TypeAdapter
from transformers import AutoModel, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.build.encoder_provenance import (
    collect_provenance,
    collect_results,
    describe_base,
    find_hub_names,
    read_base_license,
)
from uniaudio.build.encoders import load_encoder
from uniaudio.build.result_fingerprints import fingerprint_checkpoint
from uniaudio.build.run_config import open_run
from uniaudio.cli import main
from uniaudio.commands import export as exporting
from uniaudio.commands.export import check_onnx, export_checkpoint, suite_command
from uniaudio.commands.export_model import require_fitting_run
from uniaudio.commands.train import run_training
from uniaudio.config.adapters import AdapterConfig
from uniaudio.config.fusion import FusionConfig, SumConfig
from uniaudio.errors import UserError
from uniaudio.export.hf import make_noise
from uniaudio.export.model_card import make_header, write_card
from uniaudio.export.stock_formats import STOCK_FORMATS
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.model_files import RANDOM_WEIGHTS
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.writing import Snapshot, save_checkpoint


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as left:
        main(["export", *map(str, arguments)])
    assert left.value.code == 2
    return capsys.readouterr().err


def write(*arguments) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", *map(str, arguments)])
    assert left.value.code == 0


@pytest.fixture
def run(tone_run, fresh_accelerate):
    """A finished run of the tones, its encoder trained with low-rank updates, with results beside it."""
    config = open_run(str(tone_run), ["encoders.whisper.train=lora", "encoders.whisper.lora.rank=4"])
    run_training(config, None)
    out = tone_run.parent / "out"
    model = {"knn": {"mean": 0.875, "std": 0.0125}}
    prints = {"runs/out": fingerprint_checkpoint(str(out)), "elsewhere/out": "ab" * 32}
    scores = {"tones": {"runs/out": model, "elsewhere/out": model}}
    probes = {"tasks": {"tones": {"metric": "accuracy"}}, "scores": scores, "fingerprints": prints}
    (out / "probes.json").write_text(json.dumps(probes))
    return out


def test_a_run_becomes_a_model_with_its_card(run, tmp_path, capsys):
    write(run, tmp_path / "exported")
    output = capsys.readouterr().out
    assert "model.safetensors" in output
    assert f'AutoModel.from_pretrained("{tmp_path / "exported"}", trust_remote_code=True)' in output
    model = AutoModel.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    samples, mask = make_noise((16_000, 5_000)).pad()
    with torch.no_grad():
        frames = model(samples, attention_mask=mask).last_hidden_state
        wanted = load_encoder(str(run), torch.device("cpu"))(make_noise((16_000, 5_000))).frames.rows()[1]
        torch.testing.assert_close(frames[1, : len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    header = ModelCard.load(tmp_path / "exported" / "README.md").data
    assert (header.library_name, header.pipeline_tag) == ("transformers", None)
    assert (header.license, header.license_name) == (
        "other",
        "licenses-of-bases-and-data",
    )  # of the base: unknown
    assert (header.datasets, header.metrics, header.base_model) == (None, ["accuracy"], None)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert card.startswith("---\n")
    for line in (
        "for 8 steps (one)",
        "| tones | tone | CC0-1.0 | not stated |",
        "| tones | out | knn probe (accuracy) | 0.875 ± 0.013 |",
        "| tones | elsewhere/out (other weights, abababab) | knn probe (accuracy) | 0.875 ± 0.013 |",
        "frames of width 64 out, 50 per second",
        'subfolder="whisper_encoder"',
    ):
        assert line in card
    assert re.search(r"- whisper: whisper \([0-9a-f]{12}\)", card)
    assert str(run) not in card.replace(str(tmp_path / "exported"), "")
    assert model.config.provenance["steps"] == 8
    write(tmp_path / "exported", tmp_path / "again")  # an exported model is a model
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(samples, attention_mask=mask).last_hidden_state, frames)


def test_a_model_that_pads_gives_the_frames_of_stock_whisper_cut_to_the_clip(tmp_path, fresh_model_code):
    tiny_whisper().save_pretrained(tmp_path / "w")
    write(f"{tmp_path}/w?pad_to=30", tmp_path / "exported")
    model = AutoModel.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    lengths = (16_000, 5_000)
    samples, mask = make_noise(lengths).pad()
    clips = [clip.numpy() / 32768.0 for clip in make_noise(lengths).rows()]
    stock = WhisperEncoder.from_pretrained(tmp_path / "exported", subfolder="whisper_encoder")
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "exported" / "whisper_encoder")
    with torch.no_grad():
        frames = model(samples, attention_mask=mask).last_hidden_state
        wanted = stock(**extractor(clips, sampling_rate=16_000, return_tensors="pt")).last_hidden_state
    for row, samples_of_row in enumerate(lengths):
        count = -(-samples_of_row // 320)
        torch.testing.assert_close(frames[row, :count], wanted[row, :count], atol=2e-3, rtol=1e-3)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "# w?pad_to=30\n" in card
    assert "- w, licence: not stated with the weights\n" in card
    assert str(tmp_path) not in card.replace(str(tmp_path / "exported"), "")
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()
    assert "its frames, cut to the clip, equal those of this model" in " ".join(card.split())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pool": 2}, "it gives 2 frames for each of this model"),
        ({"pad_to": 30.0, "pad_stride": 16}, "this model encodes with pad_to: 30.0, pad_stride: 16."),
        ({"tail_frames": 2}, "at exactly 30 s, and differ for shorter clips, which this model encodes with"),
        ({}, "which this model encodes without padding."),
    ],
)
def test_a_card_says_how_the_stock_whisper_differs(settings, sentence, tmp_path):
    (tmp_path / "whisper_encoder").mkdir()
    facts = {"name": "n", "domains": [], "bases": ["b"], "datasets": [], "audio_hours": None, "results": []}
    encoder = WhisperAudioEncoder(tiny_whisper(), **settings)
    write_card(tmp_path, encoder, {**facts, "steps": 0, "stages": []}, "place")
    assert sentence in " ".join((tmp_path / "README.md").read_text().split())


def test_bases_are_named_without_the_folders_of_this_machine(tmp_path):
    unknown = "licence: not stated with the weights"
    for path, named in (
        (f"{tmp_path}/w", "w"),
        ("./folders/w", "w"),
        ("openai/whisper-small", "openai/whisper-small"),
    ):
        assert describe_base("", {"path": path}) == f"{named}, {unknown}"
        assert (
            describe_base("encoder a", {"path": path, "sha256": "0" * 64})
            == f"a: {named} (000000000000), {unknown}"
        )


def test_the_card_of_random_weights_does_not_lend_them_name_hash_or_licence_of_a_model(tmp_path):
    folder = tmp_path / "w"
    tiny_whisper().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    base = {"path": f"random:{folder}", "sha256": "0" * 64}
    assert describe_base("encoder a", base) == "a: random weights, in the architecture of w"
    hub = {"path": "random:openai/whisper-small"}
    assert describe_base("", hub) == "random weights, in the architecture of openai/whisper-small"
    facts = collect_provenance(f"random:{folder}?pad_to=2")
    assert facts["name"] == "random:w?pad_to=2"
    assert (facts["licenses"], facts["base_models"]) == ([], [])
    assert collect_provenance(str(folder))["licenses"] == ["mit"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | RANDOM_WEIGHTS))  # as `uniaudio demo` makes them
    assert collect_provenance(str(folder))["bases"] == ["random weights, in the architecture of w"]


def test_the_header_of_a_card_is_what_the_hub_reads(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert read_base_license(str(tmp_path)) == "apache-2.0"
    assert read_base_license("openai/whisper-small") == ""
    assert find_hub_names(["openai/whisper-small", str(tmp_path), "./w/x", "random:a/b"]) == [
        "openai/whisper-small"
    ]
    facts = {
        "base_models": ["openai/whisper-small", "facebook/hubert-base-ls960"],
        "licenses": ["apache-2.0", "Apache-2.0"],
        "datasets": [
            {"name": "digits", "hub": "mteb/free-spoken-digit-dataset"},
            {"name": "birds", "hub": None},
        ],
        "metrics": ["accuracy", "wer"],
    }
    header = ModelCard(f"---\n{make_header(facts)}\n---\n# encoder\n").data
    assert (header.license, header.get("license_name")) == ("apache-2.0", None)
    assert header.base_model == facts["base_models"]
    assert header.datasets == ["mteb/free-spoken-digit-dataset"]
    assert header.metrics == ["accuracy", "wer"]
    for licenses in ([], ["apache-2.0", "CC-BY-4.0"], ["see the README"], ["gpl-2.0-or-later"]):
        header = ModelCard(f"---\n{make_header({**facts, 'licenses': licenses})}\n---\n").data
        assert (header.license, header.license_name) == ("other", "licenses-of-bases-and-data")
    for stated, named in (("CC-BY-NC-3.0", "cc-by-nc-3.0"), ("ODC-By-1.0", "odc-by"), ("ODbL-1.0", "odbl")):
        header = ModelCard(f"---\n{make_header({**facts, 'licenses': [stated]})}\n---\n").data
        assert header.license == named


def test_options_are_refused_before_anything_is_written(run, tmp_path, capsys):
    for options, sentence in (
        ("tail_frame=2", "a model has no option 'tail_frame' (did you mean 'tail_frames'?)"),
        ("frame_rate=2", "whisper.frame_rate: a whisper encoder has no such setting; leave it out"),
        ("second.pad_to=2", "has no encoder 'second'; it has whisper"),
    ):
        assert sentence in " ".join(refusal(capsys, f"{run}?{options}", tmp_path / "no").split())
    assert not (tmp_path / "no").exists()
    assert collect_provenance(f"{run}?pad_to=3")["name"] == "out?pad_to=3"
    rows = collect_provenance(f"{run}?pad_to=3")["results"]
    assert [row["model"] for row in rows] == ["out, step-000008", "elsewhere/out (other weights, abababab)"]


def test_the_command_of_a_suite_names_the_entry_from_where_it_runs():
    """X-ARES and XARES-LLM make the name of a module of it."""
    entry = Path("runs/entry/uniaudio_encoder.py")
    assert suite_command("xares", entry) == f"python -m xares.run --max-jobs 0 {entry} tasks/esc50_task.py"
    assert suite_command("mteb", entry) == f"python {entry} ESC50 ESC50Clustering"
    wanted = "cd '/a b' && python -m xares_llm.run entry/uniaudio_encoder.py task1 task1"
    assert suite_command("xares-llm", Path("/a b/entry/uniaudio_encoder.py")) == wanted
    wanted = "cd runs/entry && PYTHONPATH=. hear-validator uniaudio_01234567 -d cpu"
    assert suite_command("hear", entry.with_name("uniaudio_01234567.py")) == wanted


def test_entries_for_the_suites_of_a_run_without_results(run, tmp_path, capsys):
    (run / "probes.json").unlink()
    for suite, part in (
        ("xares", "python -m xares.run"),
        ("xares-llm", "python -m xares_llm.run"),
        ("mteb", "uniaudio_encoder.py ESC50"),
        ("hear", "hear-validator uniaudio_"),
    ):
        write(run, tmp_path / suite, "--to", suite)
        names = sorted(path.name for path in (tmp_path / suite).iterdir())
        assert names[0] == "encoder"
        assert re.fullmatch("uniaudio_[0-9a-f]{8}.py" if suite == "hear" else "uniaudio_encoder.py", names[1])
        assert len(names) == 2
        assert part in capsys.readouterr().out
        card = (tmp_path / suite / "encoder" / "README.md").read_text()
        assert "None are stored with the run." in card


def test_hear_is_refused_where_frames_are_not_in_the_order_of_time(tmp_path, capsys, monkeypatch):
    save_miniature("whisper", tmp_path / "whisper")
    encoder = WhisperAudioEncoder(tiny_whisper())
    encoder.follows_time = False
    monkeypatch.setattr(exporting, "load_encoder", lambda *_: encoder)
    message = " ".join(refusal(capsys, tmp_path / "whisper", tmp_path / "entry", "--to", "hear").split())
    assert "timestamp embeddings need frames in the order of time" in message
    assert not (tmp_path / "entry").exists()


def test_the_trained_weights_of_a_run_are_in_its_onnx_file(run, tone_run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    write(run, tmp_path / "file", "--to", "onnx")
    output = capsys.readouterr().out
    assert f'InferenceSession("{tmp_path / "file" / "encoder.onnx"}")' in output
    assert "padding='max_length'" in output
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "file")
    clips = [clip.numpy() / 32768.0 for clip in make_noise((480_000, 16_000)).rows()]
    inputs = extractor(clips, sampling_rate=16_000, return_tensors="np")
    session = onnxruntime.InferenceSession(str(tmp_path / "file" / "encoder.onnx"))
    (frames,) = session.run(None, dict(inputs))
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["uniaudio"])
    assert (metadata["dim"], metadata["frame_rate"], metadata["steps"]) == (64, 50.0, 8)
    silent = Ragged.from_padded(make_noise((480_000, 16_000)).pad()[0], torch.tensor([480_000, 480_000]))
    with torch.no_grad():
        trained, base = (
            load_encoder(str(path), torch.device("cpu"))(silent).frames.rows()
            for path in (run, tone_run.parent / "whisper")
        )
    for row, expected, before in zip(frames, trained, base, strict=True):
        np.testing.assert_allclose(row, expected.numpy(), atol=2e-5)
        assert np.abs(row - before.numpy()).max() > 1e-3


def test_what_onnx_cannot_hold_is_refused_before_weights_are_read(tone_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uniaudio.commands.export.load_encoder", None)
    fused = open_run(str(tone_run)).model_copy(update={"fusion": SumConfig(kind="sum")})
    with pytest.raises(UserError, match="a fused encoder cannot be exported"):
        check_onnx("any", fused)
    save_miniature("ast", tmp_path / "ast")
    (tmp_path / "ast" / "model.safetensors").unlink()
    assert "encoders of the model type audio-spectrogram-transformer cannot be exported" in refusal(
        capsys, tmp_path / "ast", tmp_path / "file", "--to", "onnx"
    )
    assert not (tmp_path / "file").exists()


def test_facts_of_an_averaged_checkpoint_and_of_a_plain_model(run, tone_run):
    assert collect_provenance(f"{run}:ema")["name"] == "out:ema"
    plain = collect_provenance(str(tone_run.parent / "whisper"))
    assert (plain["name"], plain["steps"], plain["datasets"]) == ("whisper", 0, [])


def test_the_card_of_a_run_that_began_with_another_run_lists_what_that_was_trained_on(tone_run):
    folder = tone_run.parent
    card = (folder / "tones.yaml").read_text()
    (folder / "more.yaml").write_text(
        card.replace("dataset: tones", "dataset: more").replace("CC0-1.0", "mit")
    )
    recipe = (folder / "tone_recipe.yaml").read_text()
    (folder / "more_recipe.yaml").write_text(
        recipe.replace("tones", "more").replace("tone_recipe", "more_recipe")
    )
    hub = {"encoder whisper": {"path": "openai/whisper-small", "revision": "cd" * 20}}
    copied = {"encoder whisper": {"path": str(folder / "first"), "sha256": "ab" * 32}}
    first, later = (folder / name for name in ("first", "later"))
    for run, name, bases in ((first, "tone_recipe", hub), (later, "more_recipe", copied)):
        config = open_run(str(tone_run), [f"output_dir={run}", f"stages.0.recipe={name}"])
        state = {"stage": 0, "step": 8, "stage_seconds": 3600.0}
        save_checkpoint(run, Snapshot(8, state, {}, {"encoder.w": torch.zeros(1)}), config, bases)
    facts = collect_provenance(str(later))
    assert [data["name"] for data in facts["datasets"]] == ["more", "tones"]
    assert facts["licenses"] == ["mit", "", "CC0-1.0"]
    assert facts["base_models"] == ["openai/whisper-small"]
    assert [base.split(" (")[0] for base in facts["bases"]] == [
        "whisper: first",
        "whisper: openai/whisper-small",
    ]
    assert collect_provenance(str(first))["licenses"] == ["", "CC0-1.0"]


def test_results_of_a_suite_are_on_the_card_too(tmp_path):
    (tmp_path / "probes.json").write_text(
        json.dumps(suite_results(["tones", "words"], ["runs/out", "random:a/it"]))
    )
    rows = collect_results(tmp_path, str(tmp_path))
    assert [(row["set"], row["model"]) for row in rows] == [
        (task, model) for task in ("tones", "words") for model in ("out", "random:it")
    ]
    assert {row["measure"] for row in rows} == {"linear, mlp, knn probe (accuracy)"}
    assert all(re.fullmatch(r"(0\.\d{3} ± 0\.\d{3}(, |$)){3}", row["value"]) for row in rows)
    (tmp_path / "probes.json").write_text(json.dumps({"suite": "realdata"}))
    with pytest.raises(UserError, match="holds no probe scores"):
        collect_results(tmp_path, str(tmp_path))


@pytest.mark.parametrize("content", [{"tasks": {}, "scores": {}}, {"tasks": {}, "scores": {"tones": {}}}])
def test_a_run_folder_with_empty_results_or_none_has_none(tmp_path, content):
    assert collect_results(tmp_path, str(tmp_path)) == []
    (tmp_path / "probes.json").write_text(json.dumps(content))
    (tmp_path / "answers.json").write_text("{}")
    assert collect_results(tmp_path, str(tmp_path)) == []


def test_answers_of_the_challenge_are_on_the_card(tmp_path):
    entries = {"tones:tone": {"metric": "accuracy", "score": 0.25}}
    stored = {"protocol": "xares-llm", "overall": 0.25, "scores": {}, "not_scored": {}, "entries": entries}
    (tmp_path / "answers.json").write_text(json.dumps(stored))
    assert [
        (row["set"], row["measure"], row["value"]) for row in collect_results(tmp_path, str(tmp_path))
    ] == [("tones:tone", "accuracy", "0.250")]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("probes.json", "{"),
        ("probes.json", "[1]"),
        ("probes.json", '{"scores": {"a": {"m": 3}}, "tasks": {"a": 3}}'),
        ("probes.json", '{"scores": {"a": {}}, "tasks": {"a": {"weight": "x"}}}'),
        ("answers.json", ""),
        ("answers.json", "\x00"),
        ("answers.json", '["a"]'),
        ("answers.json", '{"a": {"metric": "wer", "score": "low"}}'),
    ],
)
def test_results_of_another_form_are_named(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=str(tmp_path / file)):
        collect_results(tmp_path, str(tmp_path))


@pytest.mark.parametrize("to", ["hf", "xares"])
def test_an_export_that_gives_other_frames_is_removed(tmp_path, monkeypatch, to):
    """It could be used by mistake, and the same command would be refused because of it."""

    def differ(encoder, folder):
        assert (folder / "model.safetensors").is_file()
        raise RuntimeError("the frames differ")

    tiny_whisper().save_pretrained(tmp_path / "whisper")
    monkeypatch.setattr("uniaudio.export.hf.verify_hf", differ)
    with pytest.raises(RuntimeError, match="the frames differ"):
        export_checkpoint(str(tmp_path / "whisper"), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("uniaudio.commands.export.load_encoder", never)
    assert "did you mean 'onnx'" in refusal(capsys, "any", tmp_path / "out", "--to", "onxn")
    assert "works with --to hf" in refusal(
        capsys, "any", tmp_path / "out", "--to", "onnx", "--push-to-hub", "me/it"
    )
    for to in ("hf", "mteb", "voxtral"):
        options = ("--to", to, "--decoder", "reference")
        assert "--decoder reference works only with --to hf-lm" in refusal(
            capsys, "any", tmp_path / "out", *options
        )
    assert "OWNER/NAME" in refusal(capsys, "any", tmp_path / "out", "--push-to-hub", "it")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "without a complete checkpoint" in refusal(capsys, tmp_path / "run", tmp_path / "out")
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "config.yaml").touch()
    assert "without a complete checkpoint" in refusal(capsys, tmp_path / "planned", tmp_path / "out")
    assert "not empty" in refusal(capsys, "any", tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "--to onnx needs the extra onnx" in refusal(capsys, "any", tmp_path / "out", "--to", "onnx")
    assert not (tmp_path / "out").exists()


def test_a_whole_run_in_a_published_format_with_its_card(tone_run, fresh_accelerate, tmp_path, capsys):
    changes = ["adapter.kind=qwen2_audio", "encoders.whisper.pool=2", "encoders.whisper.masked_padding=true"]
    (tone_run.parent / "qwen" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = open_run(str(tone_run), [*changes, "stages.0.steps=2", "decoder.train=lora"])
    run_training(config, None)
    run = tone_run.parent / "out"
    write(run, tmp_path / "exported", "--to", "qwen2-audio")
    output = " ".join(capsys.readouterr().out.split())
    assert "the most likely first token is the same for 4" in output
    assert "cannot serve it with a qwen3 decoder" in output
    assert f'Qwen2AudioForConditionalGeneration.from_pretrained("{tmp_path / "exported"}")' in output
    card = (tmp_path / "exported" / "README.md").read_text()
    for line in (
        "pipeline_tag: audio-text-to-text",
        ", licence: apache-2.0",
        ", licence: not stated with the weights",
        "| tones | tone | CC0-1.0 | not stated |",
        "None are stored with the run.",
    ):
        assert line in card
    assert re.search(r"- decoder: qwen \([0-9a-f]{12}\)", card)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out, to, sentence in (
        ("full", "qwen2-audio", "full is not empty; give DIR a new folder"),
        (
            "no",
            "audio-flamingo3",
            "has the projector of adapter.kind audio_flamingo3, but the run has qwen2_audio",
        ),
        ("no", "qwen2-audo", "did you mean 'qwen2-audio'?"),
    ):
        assert sentence in " ".join(refusal(capsys, run, tmp_path / out, "--to", to).split())
    assert "and" in refusal(capsys, tone_run.parent / "whisper", tmp_path / "no", "--to", "qwen2-audio")
    assert not (tmp_path / "no").exists()


def test_what_no_published_format_holds_is_refused_in_a_sentence(tone_run):
    """Every operator of fusion, every other adapter, and Whisper's own decoder."""
    config = open_run(str(tone_run))
    check = partial(require_fitting_run, to="qwen2-audio", target=STOCK_FORMATS["qwen2-audio"])
    kinds = [
        kind
        for one in get_args(get_args(FusionConfig)[0])
        for kind in get_args(one.model_fields["kind"].annotation)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        fusion = SumConfig.model_construct(kind=kind)
        with pytest.raises(
            UserError, match=rf"the format has one encoder, but fusion\.kind is {kind}; use --to hf-lm"
        ):
            check(config.model_copy(update={"fusion": fusion}))
    for kind in (
        "stack",
        "pool",
        "conv",
        "qformer",
        "perceiver",
        "tokens",
        "audio_flamingo3",
        "voxtral",
        "ultravox",
    ):
        adapter = TypeAdapter(AdapterConfig).validate_python({"kind": kind})
        with pytest.raises(UserError, match=f"but the run has {kind}; train with adapter"):
            check(config.model_copy(update={"adapter": adapter}))
    whisper = config.decoder.model_copy(update={"kind": "whisper"})
    with pytest.raises(UserError, match="no place for Whisper's own decoder"):
        check(config.model_copy(update={"decoder": whisper}))


def test_a_whole_run_with_custom_code_and_its_decoder_by_reference(
    run, tone_run, tmp_path, capsys, fresh_model_code
):
    write(run, tmp_path / "lm", "--to", "hf-lm", "--decoder", "reference")
    output = " ".join(capsys.readouterr().out.split())
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "lm"}", trust_remote_code=True)' in output
    card = (tmp_path / "lm" / "README.md").read_text()
    assert "The decoder's weights are not in the folder" in card
    assert re.search(r"- decoder: qwen \([0-9a-f]{12}\)", card)
    assert "knn probe (accuracy)" in card
    assert json.loads((tmp_path / "lm" / "config.json").read_text())["decoder_path"] == str(
        tone_run.parent / "qwen"
    )
    for options, sentence in (
        (("--to", "hf-lm", "--decoder", "elsewhere"), "give inside or reference"),
        (("--to", "qwen2-audio", "--decoder", "reference"), "--decoder reference works only with --to hf-lm"),
    ):
        assert sentence in " ".join(refusal(capsys, run, tmp_path / "no", *options).split())
