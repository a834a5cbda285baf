"""Ultravox written out from its published layout: padded windows, masks, and nothing of the package."""

import json
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder


def normalize(values, weight):
    return weight * values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6)


class UltravoxReference:
    """A folder whose config has ``model_type: ultravox``, with all weights inside."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        assert self.config["model_type"] == "ultravox"
        assert self.config["architectures"] == ["UltravoxModel"]
        assert self.config["audio_model_id"] is None
        assert self.config["text_model_id"] is None
        assert self.config["projector_ln_mid"]
        tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        tower = WhisperConfig(**self.config["audio_config"])
        tower._attn_implementation = "eager"
        self.tower = WhisperEncoder(tower).eval()
        tied = self.config["text_config"]["tie_word_embeddings"]
        assert tied == ("language_model.lm_head.weight" not in tensors)
        if tied:  # the table is stored once
            table = tensors["language_model.model.embed_tokens.weight"]
            tensors["language_model.lm_head.weight"] = table
        text = AutoConfig.for_model(**self.config["text_config"])
        self.lm = AutoModelForCausalLM.from_config(text, dtype=torch.float32).eval()
        assert text.architectures == [type(self.lm).__name__]
        parts = {"audio_tower.": self.tower, "language_model.": self.lm, "multi_modal_projector.": None}
        for prefix, module in parts.items():
            part = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
            if module is None:
                self.projector = part
            else:
                module.load_state_dict(part)
        assert sorted(self.projector) == [
            "linear_1.weight",
            "linear_2.weight",
            "ln_mid.weight",
            "ln_pre.weight",
        ]
        assert len(self.projector["linear_1.weight"]) == self.config["hidden_size"]

    def encode(self, values, lengths):
        """Frames of padded windows, of which attention sees the real ones alone."""
        hidden = F.gelu(self.tower.conv2(F.gelu(self.tower.conv1(values)))).transpose(1, 2)
        hidden = hidden + self.tower.embed_positions.weight[: hidden.shape[1]]
        is_real = torch.arange(hidden.shape[1]) < ((lengths - 1) // 2 + 1)[:, None]
        mask = torch.zeros(is_real.shape).masked_fill(~is_real, torch.finfo(torch.float32).min)[:, None, None]
        for layer in self.tower.layers:
            output = layer(hidden, mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.tower.layer_norm(hidden)

    def project(self, frames):
        stack = self.config["stack_factor"]
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % stack))
        stacked = frames.reshape(len(frames), -1, stack * frames.shape[2])
        hidden = normalize(stacked, self.projector["ln_pre.weight"]) @ self.projector["linear_1.weight"].T
        value, gate = hidden[..., : hidden.shape[-1] // 2], hidden[..., hidden.shape[-1] // 2 :]
        return (
            normalize(F.silu(gate) * value, self.projector["ln_mid.weight"])
            @ self.projector["linear_2.weight"].T
        )

    def embed(self, inputs):
        embeds = self.lm.get_input_embeddings()(inputs["input_ids"]).clone()
        tokens = self.project(self.encode(inputs["audio_values"], inputs["audio_lens"]))
        window = 0
        for row, windows in enumerate(inputs["audio_batch_size"].tolist()):
            for _ in range(windows):
                count, start = inputs["audio_token_len"][window], inputs["audio_token_start_idx"][window]
                assert (
                    inputs["input_ids"][row, start : start + count] == self.config["audio_token_index"]
                ).all()
                embeds[row, start : start + count] = tokens[window, :count]
                window += 1
        assert window == len(tokens)
        return embeds

    def __call__(self, **inputs):
        return SimpleNamespace(
            logits=self.lm(inputs_embeds=self.embed(inputs), attention_mask=inputs["attention_mask"]).logits
        )

    def generate(self, max_new_tokens, **inputs):
        new = self.lm.generate(
            inputs_embeds=self.embed(inputs),
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return torch.cat([inputs["input_ids"], new], 1)
