"""An exported encoder as mteb wants it: clips in, one embedding for each out.

``python FILE TASK ...`` runs the tasks. Tasks with text or images on one side need a model of those as well, so mteb
leaves them out for this one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mteb
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator
from transformers import AutoModel


class UniaudioEncoder(AbsEncoder):
    """``encode`` gives the mean over each clip's real frames; clips of a batch do not depend on each other."""

    def __init__(
        self, model_name: str = "", revision: str | None = None, device: str | None = None, **_: Any
    ) -> None:
        folder = Path(model_name) if model_name else Path(__file__).resolve().parent / "encoder"
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval().to(self.device)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"uniaudio/{type(self).__name__}",  # mteb keeps its results under it
                "revision": revision or "exported",
                "modalities": ["audio"],
                "embed_dim": self.model.config.hidden_size,
                "n_parameters": self.model.num_parameters(),
                "framework": ["PyTorch"],
            }
        )

    @torch.no_grad()
    def encode(self, inputs: Any, **_: Any) -> Any:
        """Return ``[clips, E]`` float32 of a loader of batches with clips at any rate under ``audio``.

        Raises:
            ValueError: for batches without clips.
        """
        rate = self.model.config.sampling_rate
        inputs.collate_fn = AudioCollator(target_sampling_rate=rate)
        pooled = []
        for batch in inputs:
            if "audio" not in batch:
                raise ValueError(f"the encoder embeds only audio, but the task gives {', '.join(batch)}")
            waveforms = [torch.as_tensor(clip["array"]).float() for clip in batch["audio"]]
            # [S], or [channels, S]
            clips = [torch.atleast_2d(waveform).mean(0).to(self.device) for waveform in waveforms]
            pooled.append(self.model(clips).pooler_output.cpu())
        return torch.cat(pooled).numpy()


def main() -> None:
    """Run the tasks of mteb named on the command line and print their main scores."""
    results = mteb.evaluate(UniaudioEncoder(), mteb.get_tasks(tasks=sys.argv[1:]))
    for result in results.task_results:
        print(result.task_name, result.get_score())


if __name__ == "__main__":
    main()
