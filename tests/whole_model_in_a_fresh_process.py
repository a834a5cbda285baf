"""Answer with an exported whole model in a process that cannot import uniaudio; prints JSON.

Arguments: the folder, and a file of NumPy with two waveforms, ``one`` and ``two``.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, __version__

sys.modules["uniaudio"] = None  # importing it is an error
folder, clips = sys.argv[1], np.load(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
texts = [
    processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
    )
    for question in ("low?", "Which tone is it?")
]
inputs = processor(text=texts, audio=[clips["one"], clips["two"]], sampling_rate=16_000)
with torch.no_grad():
    logits = model(**inputs).logits[:, -1]
    ids = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
print(json.dumps({"version": __version__, "logits": logits.tolist(), "ids": ids.tolist()}))
