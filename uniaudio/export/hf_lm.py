"""A whole run as a folder that ``AutoModelForCausalLM`` and ``AutoProcessor`` load, with code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.export.chat_template import prepare_tokenizer, write_prompt_files
from uniaudio.export.describe import add_older_names, describe_encoder, find_parts
from uniaudio.export.hf import collect_code, detach_tensor
from uniaudio.export.hub_lm import AUDIO
from uniaudio.export.hub_lm_config import UniaudioLMConfig
from uniaudio.export.stock_model import SHARD, find_name, has_tied_head, make_text_config, store_compactly
from uniaudio.model.audio_lm import AudioLM
from uniaudio.outputs import apply_umask, write_json
from uniaudio.types import SAMPLE_RATE

ROOT, CONFIG, MODEL = "uniaudio.export.hub_lm", "configuration_uniaudio_lm", "modeling_uniaudio_lm"
CLASSES = ("UniaudioForCausalLM", "UniaudioProcessor")
AUTO = {
    "AutoConfig": f"{CONFIG}.UniaudioLMConfig",
    "AutoModelForCausalLM": f"{MODEL}.UniaudioForCausalLM",
    "AutoProcessor": f"{MODEL}.UniaudioProcessor",
}


def write_hf_lm(
    model: AudioLM,
    format: ChatFormat,
    folder: Path,
    provenance: Mapping[str, Any],
    decoder: tuple[str, str | None] | None = None,
) -> None:
    """Write a model without low-rank updates: weights, configuration, code, processor, tokenizer, chat template.

    Args:
        decoder: folder or Hub name of the decoder and its revision, to be read from there; None: its weights are
            written, too.

    Raises:
        UserError: when a part is code of others, see ``describe_encoder``.
    """
    encoder, adapter = describe_encoder(model.encoder), describe_encoder(model.adapter)
    folder.mkdir(parents=True, exist_ok=True)
    lm = model.decoder.lm
    tokenizer, (audio,) = prepare_tokenizer(format, AUDIO, [AUDIO])
    is_tied = has_tied_head(lm)
    tensors = collect_exported_tensors(model, lm if decoder is None else None, is_tied)
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)
    text = make_text_config(lm.config, model.decoder.vocabulary, is_tied)
    config = UniaudioLMConfig(
        encoder=encoder,
        adapter=adapter,
        text={**add_older_names(text.to_dict(), type(text)), "model_type": lm.config.model_type},
        decoder_path=None if decoder is None else decoder[0],
        decoder_revision=None if decoder is None else decoder[1],
        audio_token_id=audio,
        sampling_rate=SAMPLE_RATE,
        provenance=dict(provenance),
        architectures=[CLASSES[0]],
        auto_map=AUTO,
        dtype="float32",
        tie_word_embeddings=is_tied,
    )
    config.to_json_file(folder / "config.json")
    write_processor(folder, str(tokenizer.chat_template), encoder, adapter)
    write_prompt_files(format, tokenizer, folder)
    for name, code in collect_code(find_parts([encoder, adapter]), ROOT, CLASSES).items():
        (folder / name).write_text(code, encoding="utf-8")
    apply_umask(folder)


def collect_exported_tensors(model: AudioLM, lm: Any, is_tied: bool) -> dict[str, Tensor]:
    """Return the tensors of encoder, adapter and language model by their names in the export, as copies on the CPU.

    Args:
        lm: the language model, or None to leave it out. is_tied: its head is its table of embeddings, and left out.
    """
    tensors = {
        f"{name}.{key}": value
        for name, part in (("encoder", model.encoder), ("adapter", model.adapter))
        for key, value in part.state_dict().items()
    }
    if lm is not None:
        second = f"{find_name(lm, lm.get_output_embeddings())}.weight" if is_tied else None
        tensors |= {
            f"language_model.{key}": store_compactly(value)
            for key, value in lm.state_dict().items()
            if key != second
        }
    return {key: detach_tensor(value) for key, value in tensors.items()}


def write_processor(folder: Path, template: str, encoder: Any, adapter: Any) -> None:
    """Write feature extractor, chat template and what the processor is made of."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True
    ).save_pretrained(folder)
    values = {"processor_class": CLASSES[1], "auto_map": AUTO, "encoder": encoder, "adapter": adapter}
    write_json(folder / "processor_config.json", values)
