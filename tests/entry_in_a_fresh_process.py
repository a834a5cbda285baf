"""Run in a process of its own: use an entry for XARES-LLM as the suite does, without this package.

Argument: the folder of the entry, with clips and frames in ``encoder.safetensors``. Prints one JSON object.
"""

import importlib
import json
import sys
from pathlib import Path

sys.modules["uniaudio"] = None
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import PretrainedConfig, PreTrainedModel  # noqa: E402

entry = importlib.import_module("uniaudio_encoder")
(name,) = [name for name in dir(entry) if name.endswith("Encoder")]
encoder = getattr(entry, name)().train()
wanted = load_file(folder / "encoder.safetensors")
clips = [wanted[f"clip{i}"].float() / 32768 for i in range(3)]
audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
mask = torch.tensor([[int(i < len(clip)) for i in range(audio.shape[1])] for clip in clips])
with torch.no_grad():
    frames, frame_mask = encoder(audio, mask)


class Outer(PreTrainedModel):
    """Makes the encoder in its constructor, as the suite's model does: one model is loaded while another one is."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.audio_encoder = getattr(entry, name)()

    def _init_weights(self, module):
        pass


Outer(PretrainedConfig()).save_pretrained(folder / "trained")
with torch.no_grad():
    again, _ = Outer.from_pretrained(folder / "trained").audio_encoder(audio, mask)
counts = frame_mask.sum(1).tolist()
rows = [frames[i, :count] for i, count in enumerate(counts)]
print(
    json.dumps(
        {
            "difference": max(float((row - wanted[f"frames{i}"]).abs().max()) for i, row in enumerate(rows)),
            "same after loading": torch.equal(again, frames),
            "frames": counts,
            "mask": str(frame_mask.dtype),
            "training": any(module.training for module in encoder.modules()),
        }
    )
)
