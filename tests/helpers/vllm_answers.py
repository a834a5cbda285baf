"""Run by a Python with vLLM: answers about clips from a folder that vLLM opens by itself.

    python vllm_answers.py FOLDER CLIPS.npz TEXT.txt [--trust-remote-code]

Prints, as the last line, a JSON list: for each clip the number of prompt tokens, the greedy answer's token ids and the
log-probabilities of the likeliest first tokens by their ids.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import numpy as np
from vllm import LLM, SamplingParams

RATE = 16_000


def main() -> None:
    folder, clips, text, *options = sys.argv[1:]
    llm = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=1,
        trust_remote_code="--trust-remote-code" in options,
        limit_mm_per_prompt={"audio": 1},
    )
    prompt = Path(text).read_text(encoding="utf-8")
    greedy = SamplingParams(temperature=0, max_tokens=6, logprobs=5)
    results = []
    for clip in np.load(clips).values():
        request = {"prompt": prompt, "multi_modal_data": {"audio": (clip, RATE)}}
        (done,) = llm.generate(request, greedy)
        answer = done.outputs[0]
        results.append(
            {
                "tokens": len(done.prompt_token_ids),
                "ids": list(answer.token_ids),
                "logprobs": {str(token): entry.logprob for token, entry in answer.logprobs[0].items()},
            }
        )
    print(json.dumps(results))


main()
