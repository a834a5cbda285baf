"""Small models whose code lies in their folders: an encoder like Dasheng, 25 frames a second, and a decoder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

MODEL = """
import pathlib
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import ModelOutput

pathlib.Path(__file__).with_name("was_run").touch()


class LittleConfig(PretrainedConfig):
    model_type = "little"

    def __init__(self, width=12, hop=640, **rest):
        super().__init__(**rest)
        self.width, self.hop = width, hop


class LittleExtractor(FeatureExtractionMixin):
    sampling_rate = 16000

    def __init__(self, hop=640, **rest):
        super().__init__(**rest)
        self.hop = hop

    def __call__(self, audio, sampling_rate, return_tensors):
        assert sampling_rate == 16000
        wave = torch.as_tensor(audio)
        frames = wave[: len(wave) // self.hop * self.hop].view(-1, self.hop)
        levels = torch.stack([frames.abs().mean(1), frames.std(1), frames.amax(1)], 1)
        return BatchFeature({"input_values": levels[None]})


class LittleModel(PreTrainedModel):
    config_class = LittleConfig

    def __init__(self, config):
        super().__init__(config)
        self.line = torch.nn.Linear(3, config.width)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_values):
        return ModelOutput(hidden_states=self.line(input_values))
"""


def save_remote_model(folder: Path) -> None:
    """Write a folder as a repository with code of its own has it."""
    folder.mkdir(parents=True)
    (folder / "modeling_little.py").write_text(MODEL)
    auto = {"AutoConfig": "modeling_little.LittleConfig", "AutoModel": "modeling_little.LittleModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "little", "width": 12, "auto_map": auto}))
    extractor = {"auto_map": {"AutoFeatureExtractor": "modeling_little.LittleExtractor"}, "hop": 640}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    torch.manual_seed(0)
    weights = {"line.weight": torch.randn(12, 3), "line.bias": torch.randn(12)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DECODER = """
from transformers import Qwen3Config, Qwen3ForCausalLM


class TalkConfig(Qwen3Config):
    model_type = "talk"


class TalkForCausalLM(Qwen3ForCausalLM):
    config_class = TalkConfig
"""


def give_decoder_code(folder: Path) -> Path:
    """Let the Qwen3 in a folder be a model whose class comes with it, and return the file of its code."""
    code = folder / "modeling_talk.py"
    code.write_text(DECODER)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_talk.TalkConfig", "AutoModelForCausalLM": "modeling_talk.TalkForCausalLM"}
    config |= {"model_type": "talk", "architectures": ["TalkForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    return code
