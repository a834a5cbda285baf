"""The exported encoder in the hands of libraries that load, wrap, cast, train, copy and store models."""

import copy
import multiprocessing
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from export.test_hf import FUSIONS, fused, single
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
)

from uniaudio.export.hf import make_noise, write_hf
from uniaudio.export.model_card import write_card
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.ragged import Ragged

TRUST = {"trust_remote_code": True}
CLIP = make_noise((9_000,)).values.float() / 32768


def write_folder(encoder: AudioEncoder, folder: Path) -> Path:
    write_hf(encoder, folder, {"name": "test"})
    return folder


def load_model(folder: Path, **settings: object) -> torch.nn.Module:
    return AutoModel.from_pretrained(folder, **TRUST, **settings).eval()


@pytest.fixture
def whisper(tmp_path):
    return write_folder(single("whisper", tmp_path), tmp_path / "exported")


@pytest.fixture
def mowe(tmp_path):
    return write_folder(fused(FUSIONS["mowe"], tmp_path), tmp_path / "exported")


@torch.no_grad()
def frames_of(model: torch.nn.Module, clip: Tensor = CLIP) -> Tensor:
    return model(input_values=clip).last_hidden_state[0]


# -- peft, recomputing, attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [TaskType.FEATURE_EXTRACTION, None])
def test_peft_trains_saves_and_merges(whisper, tmp_path, task):
    model = load_model(whisper)
    config = LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)
    output = tuned(input_values=CLIP[None])
    assert output.last_hidden_state.shape == (1, 29, 32)
    output.pooler_output.square().sum().backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    torch.optim.SGD(tuned.parameters(), 0.1).step()
    after = frames_of(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_model(whisper), tmp_path / "adapter")
    assert torch.equal(frames_of(again), after)
    merged = again.merge_and_unload()
    torch.testing.assert_close(frames_of(merged), after, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(frames_of(load_model(tmp_path / "merged")), frames_of(merged))


def test_attention_may_be_named(whisper):
    plain = load_model(whisper)
    assert plain.config._attn_implementation == "sdpa"
    assert torch.equal(frames_of(load_model(whisper, attn_implementation="sdpa")), frames_of(plain))
    for settings in ({"attn_implementation": "eager"}, {"output_attentions": True}):  # which asks for eager
        with pytest.raises(
            ValueError, match=r"eager is not available: .* use sdpa, without output_attentions$"
        ):
            load_model(whisper, **settings)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()
    model(CLIP).last_hidden_state.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["whisper", "wavlm", "w2v_bert", "mowe"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, kind, monkeypatch):
    encoder = fused(FUSIONS["mowe"], tmp_path) if kind == "mowe" else single(kind, tmp_path)
    model = load_model(write_folder(encoder, tmp_path / "exported"))
    model.config.layerdrop = 0.0
    for module in model.modules():
        module.__dict__.update(
            {name: 0.0 for name in ("dropout", "activation_dropout") if name in vars(module)}
        )
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.is_gradient_checkpointing
    recomputed = gradients(model)
    assert recomputed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert not any(getattr(module, "recomputes", False) for module in model.modules())


def test_layers_run_twice_with_gradient_checkpointing(whisper):
    model = load_model(whisper)
    calls = []
    model.encoder.whisper.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    for count, switch in ((1, None), (2, model.gradient_checkpointing_enable)):
        calls.clear()
        if switch:
            switch()
        gradients(model)
        assert len(calls) == count


def test_an_encoder_whose_layers_cannot_recompute_says_so(tmp_path):
    model = load_model(write_folder(single("encodec", tmp_path), tmp_path / "exported"))
    with pytest.raises(ValueError, match="checkpointing: an encoder of the model type encodec cannot"):
        model.gradient_checkpointing_enable()


def test_peft_with_gradient_checkpointing(whisper):
    model = load_model(whisper)
    model.gradient_checkpointing_enable()
    tuned = get_peft_model(
        model, LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules="all-linear")
    )
    tuned(input_values=CLIP[None]).pooler_output.sum().backward()
    assert any(p.grad is not None and "lora_B" in name for name, p in tuned.named_parameters())


# -- outputs ------------------------------------------------------------------------------------------------------


def test_configuration_turns_on_hidden_states_and_tuples(whisper):
    model = load_model(whisper, output_hidden_states=True)
    assert len(model(CLIP).hidden_states) == 3
    assert model(CLIP, output_hidden_states=False).hidden_states is None
    model.config.output_hidden_states = False
    assert model(CLIP).hidden_states is None
    assert model(CLIP, return_dict=None).last_hidden_state is not None
    frames, mask, pooled = model(CLIP, return_dict=False)
    assert (frames.shape, mask.shape, pooled.shape) == ((1, 29, 32), (1, 29), (1, 32))
    model.config.return_dict = False
    assert isinstance(model(CLIP), tuple)


@pytest.mark.parametrize("name", ["whisper", "wavlm", "layers", "wq, both", "mowe"])
def test_widths_of_hidden_states_are_stated(tmp_path, name):
    encoder = fused(FUSIONS[name], tmp_path) if name in FUSIONS else single(name, tmp_path)
    model = load_model(write_folder(encoder, tmp_path / "exported"))
    states = model(CLIP, output_hidden_states=True).hidden_states
    assert [state.shape[-1] for state in states] == model.config.hidden_sizes
    assert model.config.hidden_sizes[-1] == model.config.hidden_size
    assert {state.shape[1] for state in states} == {model.num_frames(len(CLIP))}


def test_lengths_and_masks_of_frames(tmp_path):
    model = load_model(write_folder(single("wav2vec2", tmp_path), tmp_path / "exported"))
    samples = torch.tensor([16_000, 7_777, 400])
    wanted = [49, 24, 1]
    assert model._get_feat_extract_output_lengths(samples).tolist() == wanted
    assert model._get_feat_extract_output_lengths(16_000) == 49
    mask = torch.arange(16_000) < samples[:, None]
    frame_mask = model._get_feature_vector_attention_mask(49, mask)
    assert frame_mask.sum(1).tolist() == wanted
    padded, _ = make_noise(tuple(samples.tolist())).pad()
    assert torch.equal(model(padded, attention_mask=mask).frame_mask, frame_mask)


@torch.no_grad()
def test_a_graph_of_padded_clips(whisper):
    model = load_model(whisper)
    extractor = AutoFeatureExtractor.from_pretrained(whisper)
    inputs = extractor(
        [CLIP.numpy(), CLIP.numpy()[:4_000]],
        sampling_rate=16_000,
        padding="max_length",
        max_length=16_000,
        return_tensors="pt",
    )
    padded = (inputs.input_values, inputs.attention_mask)
    frames, mask, pooled = torch.export.export(model.make_padded(), padded).module()(*padded)
    wanted = model(**inputs)
    torch.testing.assert_close(frames[:, :29], wanted.last_hidden_state, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, wanted.pooler_output, atol=2e-5, rtol=1e-4)
    assert torch.equal(mask[:, :29], wanted.frame_mask)
    assert not mask[:, 29:].any()


def test_graphs_that_cannot_be_made_are_one_sentence(whisper):
    model = load_model(whisper)
    why = (
        "the encoder reads the lengths of clips on the host, and a graph would keep those of its example; use "
        "torch.export.export(model.make_padded(), ...)"
    )
    for attempt, sentence in (
        (lambda: torch.jit.trace(model, CLIP[None]), f"torch.jit.trace: {why}"),
        (lambda: torch.export.export(model, (CLIP[None],)), f"torch.export: {why}"),
        (
            lambda: torch.jit.trace(model.make_padded(), (CLIP[None], torch.ones(1, len(CLIP)))),
            "torch.jit.trace: it cannot follow this module; use torch.export.export",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence) + "$"):
            attempt()
    assert frames_of(model).shape == (29, 32)


# -- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        CLIP,
        CLIP[None],
        CLIP.double(),
        CLIP.numpy(),
        CLIP.double().numpy()[None],
        CLIP.tolist(),
        list(CLIP.numpy()),
        list(CLIP),
        [CLIP.tolist()],
        [CLIP],
        [CLIP[None]],
        [CLIP.numpy()],
        (CLIP * 32768).short(),
        [(CLIP * 32768).short().numpy()],
    ],
    ids=str,
)
def test_one_clip_in_every_form(whisper, given):
    model = load_model(whisper)
    with torch.no_grad():
        output = model(given)
    assert torch.equal(output.last_hidden_state[0], frames_of(model))


def test_a_list_of_clips_needs_no_padding(whisper):
    model = load_model(whisper)
    rows = [CLIP, CLIP[:5_000], CLIP[:333]]
    with torch.no_grad():
        output = model(rows)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        again = model(padded, lengths=[9_000, 5_000, 333])
        masked = model(rows, attention_mask=torch.arange(9_000) < torch.tensor([[9_000], [5_000], [333]]))
    assert torch.equal(output.last_hidden_state, again.last_hidden_state)
    assert torch.equal(output.last_hidden_state, masked.last_hidden_state)
    assert output.frame_mask.sum(1).tolist() == [29, 16, 2]


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (None, {}, "input_values: give waveforms"),
        (torch.zeros(2, 1, 900), {}, r"the shape \[2, 1, 900\] is not \[clips, samples\]; give one channel"),
        (torch.zeros(16_000, 2), {}, r"the shape \[16000, 2\] is not"),
        ([np.zeros((2, 900))], {}, r"a clip of the list has the shape \[2, 900\]; mix"),
        ([], {}, "there is no clip"),
        ([torch.zeros(0)], {}, "a clip has no samples"),
        (torch.zeros(0, 900), {}, "clips have 1 to 900 samples"),
        (torch.zeros(900, dtype=torch.int32), {}, "int16, or float in .* found int32"),
        (torch.full((900,), 12_000.0), {}, "reaches 12000; floats must be in"),
        ([torch.zeros(9), torch.zeros(9, dtype=torch.int16)], {}, "mixes int16 and float"),
        (
            [{"array": np.zeros(9), "path": None}],
            {},
            "give the waveform itself, not a mapping with array, path",
        ),
        (["a.wav"], {}, "give tensors, arrays or lists of numbers"),
        (torch.zeros(2, 900), {"attention_mask": torch.ones(2, 90)}, r"shape is \[2, 90\], and that of"),
        (torch.zeros(2, 900), {"lengths": [900]}, "one number for each of the 2 clips"),
        (torch.zeros(2, 900), {"lengths": [900, 901]}, "1 to 900 samples, found"),
        (torch.zeros(2, 900), {"lengths": [1.0, 0.5]}, "lengths: give whole numbers of samples"),
        (torch.zeros(2, 900), {"lengths": torch.ones(2)}, "lengths: give whole numbers of samples"),
        (torch.zeros(2, 900), {"output_attentions": True}, "output_attentions: the encoder has no such"),
        (torch.zeros(2, 900), {"input_features": torch.zeros(1)}, "input_features: the encoder has no such"),
    ],
)
def test_other_input_is_one_sentence(whisper, given, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_model(whisper)(given, **settings)
    assert "\n" not in str(caught.value)


def test_the_feature_extractor(whisper):
    model, extractor = load_model(whisper), AutoFeatureExtractor.from_pretrained(whisper)
    with pytest.raises(ValueError, match="sampling rate of 16000"):
        extractor(CLIP.numpy(), sampling_rate=44_100)
    for clips in (
        [CLIP.numpy(), CLIP.numpy()[:5_000]],
        [CLIP.double().numpy(), CLIP.tolist()[:5_000]],
        [(CLIP * 32768).short().numpy(), (CLIP[:5_000] * 32768).short().numpy()],
    ):
        inputs = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        assert torch.equal(output.last_hidden_state[0], frames_of(model))
        assert torch.equal(output.last_hidden_state[1, :16], frames_of(model, CLIP[:5_000]))


@pytest.mark.parametrize("kind", ["whisper", "mowe", "encodec"])
def test_every_block_of_the_card_runs_as_it_is_written(tmp_path, kind):
    encoder = fused(FUSIONS["mowe"], tmp_path) if kind == "mowe" else single(kind, tmp_path)
    folder = write_folder(encoder, tmp_path / "exported")
    facts = {"name": "test", "domains": [], "steps": 0, "stages": [], "bases": ["a base"], "datasets": []}
    write_card(folder, encoder, {**facts, "audio_hours": None, "results": []}, str(folder))
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    names = {"first": CLIP.numpy(), "second": CLIP.numpy()[:5_000]}
    for block in blocks:
        exec(block, names)
    frames, alone = names["output"].last_hidden_state, frames_of(load_model(folder))
    torch.testing.assert_close(frames[0], alone, atol=1e-5, rtol=1e-5)
    listed = names["model"]([names["first"], names["second"]]).last_hidden_state
    torch.testing.assert_close(frames, listed, atol=1e-5, rtol=1e-5)
    assert names["classifier"].classifier.weight.grad.any()
    assert ("gradient_checkpointing_enable" in card) == (kind != "encodec")
    resamples = "they need torch, transformers, soxr and numpy, nothing else"
    assert (
        resamples if kind == "encodec" else "they need torch, transformers and numpy, nothing else"
    ) in card
    assert "pipeline_tag" not in card
    assert '`pipeline("feature-extraction")` of\ntransformers reads texts, not sound' in card


# -- copies, casts, devices, files --------------------------------------------------------------------------------


def add_frames(model: torch.nn.Module, clip: Tensor, queue: "multiprocessing.Queue", threads: int) -> None:
    torch.set_num_threads(threads)  # sums are divided among them
    queue.put(frames_of(model, clip).numpy())


def test_a_mixture_is_pickled_and_copied(mowe):
    model = load_model(mowe)
    model.encoder.encoders["wavlm"].requires_grad_(False)
    model.gradient_checkpointing_enable()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(frames_of(other), frames_of(model))
        assert not other.training
        assert other.is_gradient_checkpointing
        flags = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (model, other)]
        assert flags[0] == flags[1]
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(next(other.parameters()), next(model.parameters()))
    half = copy.deepcopy(model.bfloat16())
    assert torch.equal(frames_of(half), frames_of(model))


@pytest.mark.slow
def test_a_mixture_in_a_new_process(mowe):
    model = load_model(mowe)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=add_frames, args=(model, CLIP, queue, torch.get_num_threads()))
    process.start()
    frames = queue.get(timeout=120)
    process.join()
    assert np.array_equal(frames, frames_of(model).numpy())


@pytest.mark.parametrize("name", ["whisper", "wavlm", "moe", "unimoe", "mowe"])
def test_bfloat16_and_half_stay_near_float32(tmp_path, name):
    encoder = fused(FUSIONS[name], tmp_path) if name in FUSIONS else single(name, tmp_path)
    folder = write_folder(encoder, tmp_path / "exported")
    wanted = frames_of(load_model(folder))
    loaded = load_model(folder, dtype=torch.bfloat16)
    cast = load_model(folder).bfloat16()
    assert torch.equal(frames_of(loaded), frames_of(cast))
    assert cast.dtype == torch.bfloat16
    for model in (cast, load_model(folder).half()):
        likeness = torch.nn.functional.cosine_similarity(frames_of(model).float(), wanted, -1)
        assert float(likeness.min()) > 0.998


@pytest.mark.parametrize(
    "settings", [{"device_map": "auto"}, {"device_map": "cpu"}, {"torch_dtype": "float32"}]
)
def test_device_maps_and_dtypes(mowe, settings):
    assert torch.equal(frames_of(load_model(mowe, **settings)), frames_of(load_model(mowe)))


def test_a_model_is_stored_in_shards_with_its_code_and_loaded(mowe, tmp_path):
    model = load_model(mowe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "again", max_shard_size="60KB")
    AutoFeatureExtractor.from_pretrained(mowe).save_pretrained(tmp_path / "again")
    assert len([*(tmp_path / "again").glob("*.safetensors")]) > 1
    assert {file.name for file in mowe.glob("*.py")} == {
        file.name for file in (tmp_path / "again").glob("*.py")
    }
    assert torch.equal(frames_of(load_model(tmp_path / "again")), frames_of(model))


class Clips(torch.utils.data.Dataset):
    """Low and high tones, labelled so."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, object]:
        time = torch.arange(3_000 + 100 * index) / 16_000
        return {"input_values": (time * (300, 3_000)[index % 2] * 6.28).sin().numpy(), "label": index % 2}


def collate_clips(extractor, rows: list[dict]) -> dict:
    clips = [row["input_values"] for row in rows]
    inputs = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    return {**inputs, "labels": torch.tensor([row["label"] for row in rows])}


def test_accumulated_batches_are_one_batch(whisper, tmp_path):
    """All clips in one step of the Trainer, at once and in two halves, move the head alike."""
    heads = []
    for size, halves in ((16, 1), (8, 2)):
        torch.manual_seed(0)
        model = AutoModelForAudioClassification.from_pretrained(whisper, num_labels=2, **TRUST)
        model.freeze_base_model()
        arguments = TrainingArguments(
            str(tmp_path / str(size)), max_steps=1, per_device_train_batch_size=size, learning_rate=1.0,
            gradient_accumulation_steps=halves, optim="sgd", report_to=[], use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, save_strategy="no", max_grad_norm=0.0,
        )  # fmt: skip
        collate = partial(collate_clips, AutoFeatureExtractor.from_pretrained(whisper))
        before = model.classifier.weight.detach().clone()
        Trainer(model, arguments, data_collator=collate, train_dataset=Clips()).train()
        heads.append(model.classifier.weight.detach() - before)
    assert heads[0].abs().max() > 1e-4
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_head_is_trained_with_the_trainer(whisper, tmp_path, checkpointing):
    extractor = AutoFeatureExtractor.from_pretrained(whisper)
    torch.manual_seed(0)  # of the head
    model = AutoModelForAudioClassification.from_pretrained(whisper, num_labels=2, **TRUST)
    assert not model.classifier.bias.any()
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    model.freeze_base_model()

    collate = partial(collate_clips, extractor)
    arguments = TrainingArguments(
        str(tmp_path / "runs"), max_steps=30, per_device_train_batch_size=8, learning_rate=0.02, report_to=[],
        use_cpu=True, remove_unused_columns=False, gradient_checkpointing=checkpointing, save_strategy="no",
        gradient_accumulation_steps=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=Clips(), eval_dataset=Clips())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert trainer.predict(Clips()).predictions.shape == (16, 2)
    trainer.save_model(tmp_path / "tuned")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "tuned", **TRUST)
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    frames_of(load_model(tmp_path / "tuned"))  # the encoder alone, without the head
    assert AutoConfig.from_pretrained(tmp_path / "tuned", **TRUST).num_labels == 2


def test_several_labels_of_a_clip_and_a_copy_of_the_head(whisper):
    model = AutoModelForAudioClassification.from_pretrained(whisper, num_labels=3, **TRUST).eval()
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    output = model(CLIP, labels=labels)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    assert torch.equal(output.loss, wanted)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(CLIP).logits, output.logits)


@pytest.mark.parametrize("count", [1, 2])
def test_values_are_regressed_where_the_configuration_says_so(whisper, count):
    settings = {"num_labels": count, "problem_type": "regression", **TRUST}
    model = AutoModelForAudioClassification.from_pretrained(whisper, **settings).eval()
    labels = torch.tensor([3, -2][:count])
    output = model(CLIP, labels=labels)
    assert output.loss.item() == pytest.approx(float((output.logits[0] - labels).square().mean()), rel=1e-5)


def test_folders_of_one_name_are_loaded_side_by_side(tmp_path):
    """As those of benchmark entries, which are all called ``encoder``: transformers kept the code of the first."""
    for kind in ("whisper", "hubert"):
        encoder = single(kind, tmp_path / kind).eval()
        folder = write_folder(encoder, tmp_path / kind / "out" / "encoder")
        wanted = encoder(Ragged.from_rows([CLIP])).frames.values
        assert torch.equal(frames_of(load_model(folder)), wanted)
        head = AutoModelForAudioClassification.from_pretrained(folder, num_labels=2, **TRUST)
        assert type(head.encoder).__name__ == type(encoder).__name__
