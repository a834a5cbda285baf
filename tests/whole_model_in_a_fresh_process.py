"""Answer with exported whole models in a process that cannot import uniaudio; prints JSON, by name of the folder.

Arguments: a file of NumPy with two waveforms, ``one`` and ``two``, and the folders.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoProcessor, __version__

sys.modules["uniaudio"] = None  # importing it is an error
clips, said = np.load(sys.argv[1]), {"version": __version__}
for folder in sys.argv[2:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    architecture = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    # those of stock formats are stock classes
    kind = getattr(transformers, architecture, AutoModelForCausalLM)
    model = kind.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in ("low?", "Which tone is it?")
    ]
    settings = {"sampling_rate": 16_000, "padding": True, "return_tensors": "pt"}
    inputs = processor(text=texts, audio=[clips["one"], clips["two"]], **settings)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        ids = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    said[Path(folder).name] = {"logits": logits.tolist(), "ids": ids.tolist()}
print(json.dumps(said))
