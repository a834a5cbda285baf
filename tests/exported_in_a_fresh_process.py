"""Run in a process of its own: load exported folders where this package and its other dependencies cannot be imported.

For each folder given: compare the frames with those beside it in ``NAME.safetensors``; print one JSON object. With
``--refusals``, a model that does not load for a ValueError has that in place of results.
"""

import json
import sys
from pathlib import Path

BLOCKED = (
    "uniaudio",
    "jaxtyping",
    "pydantic",
    "peft",
    "accelerate",
    "datasets",
    "soundfile",
    "beartype",
    "jinja2",
)
for blocked in (*BLOCKED, *(() if "--with-soxr" in sys.argv else ("soxr",))):
    sys.modules[blocked] = None

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoFeatureExtractor, AutoModel  # noqa: E402

result = {}
for folder in [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")]:
    wanted = load_file(folder.parent / f"{folder.name}.safetensors")
    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    except ValueError as problem:
        if "--refusals" not in sys.argv:
            raise
        result[folder.name] = str(problem)
        continue
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    clips = [wanted[f"clip{i}"].float().numpy() / 32768 for i in range(3)]
    inputs = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states="states" in wanted)
        counts = output.frame_mask.sum(1).tolist()
        rows = [output.last_hidden_state[i, :n] for i, n in enumerate(counts)]
        padded = torch.nn.utils.rnn.pad_sequence([wanted[f"clip{i}"] for i in range(3)], batch_first=True)
        lengths = torch.tensor([len(wanted[f"clip{i}"]) for i in range(3)])
        # int16 and lengths, instead of floats and a mask
        again = model(padded, lengths=lengths).last_hidden_state
    rough = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        frames = rough(**inputs).last_hidden_state.float()
    result[folder.name] = {
        "difference": max(
            *(float((row - wanted[f"frames{i}"]).abs().max()) for i, row in enumerate(rows)),
            float((output.pooler_output - wanted["pooled"]).abs().max()),
        ),
        "int16 equal": torch.equal(again, output.last_hidden_state),
        "padding is zero": not output.last_hidden_state[~output.frame_mask].any(),
        "bfloat16 away": float(
            (frames - output.last_hidden_state).abs().mean() / torch.cat(rows).abs().mean()
        ),
        "rate": model.config.frame_rate,
        "dim": model.config.hidden_size,
        "frames of a second": model.num_frames(16_000),
    }
print(json.dumps(result))
