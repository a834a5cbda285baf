"""Trained decoders and Whisper's own one through training, resume and questions."""

import json

import pytest
import torch
from run_folders import latest_checkpoint
from transformers import WhisperConfig, WhisperForConditionalGeneration

from uniaudio.build.model import load_model
from uniaudio.commands.ask import ask
from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.train import run_training
from uniaudio.config.run import load_run
from uniaudio.evaluate.generation.greedy import generate
from uniaudio.train.checkpoint.store import load_checkpoint


@pytest.fixture
def whisper_decoder(tone_run, chat_tokenizer):
    """A full Whisper with the tests' tokenizer."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=len(chat_tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperForConditionalGeneration(config).save_pretrained(tone_run.parent / "full")
    chat_tokenizer.save_pretrained(tone_run.parent / "full")
    return "decoder.path=full"


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["causal", "whisper"])
def test_it_trains_resumes_and_answers(tone_run, whisper_decoder, kind, how):
    overrides = ["train.max_steps=8", f"decoder={{kind: {kind}, train: {how}, lr: 1e-3}}"]
    overrides += [whisper_decoder if kind == "whisper" else "decoder.path=qwen"]
    out = tone_run.parent / "out"
    assert run_training(load_run(tone_run, overrides), None) == 0
    assert losses(out)[-1] < losses(out)[0]
    names = [n for n in load_checkpoint(latest_checkpoint(out)).model if n.startswith("decoder.")]
    assert bool(names) == (how != "frozen")
    if how == "lora":
        assert all("lora_" in name for name in names)
    again = tone_run.parent / "again"
    run_training(
        load_run(
            tone_run, [*overrides, f"output_dir={again}", "train.max_steps=4", "stages.0.schedule=constant"]
        ),
        None,
    )
    run_training(load_run(tone_run, [*overrides, f"output_dir={again}", "stages.0.schedule=constant"]), "yes")
    assert len(losses(again)) == 8
    assert isinstance(ask(str(out), tone_run.parent / "tones" / "0.wav", "Which tone is it?", 4), str)


def test_answers_of_whispers_decoder_in_a_batch_equal_answers_alone(tone_run, whisper_decoder):
    run_training(
        load_run(tone_run, ["decoder={kind: whisper, train: full, lr: 1e-3}", whisper_decoder]), None
    )
    loaded = load_model(str(tone_run.parent / "out"))
    from uniaudio.data.audio import decode
    from uniaudio.data.collate import collate_prompts
    from uniaudio.types import Example

    clips = [decode(tone_run.parent / "tones" / f"{i}.wav", 30, "clip") for i in (0, 7, 12)]
    examples = [
        Example(str(i), "tone", "tones", (clip,), ("", "Which tone is it?"), "-")
        for i, clip in enumerate(clips)
    ]

    def answers(some):
        batch = collate_prompts(some, loaded.format, loaded.model.slots_for, ("tone",))
        assert batch.audio_tokens == 0
        return generate(loaded.model, batch, loaded.format, 6)

    assert answers(examples) == [answers([example])[0] for example in examples]
    results = run_evaluation(str(tone_run.parent / "out"), None, None, None)
    assert results["tones:tone"]["examples"] == 10
