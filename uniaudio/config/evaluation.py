"""Generation and scoring of evaluation sets in a run config."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from uniaudio.config.records import Strict


class EvaluateConfig(Strict):
    """How evaluation sets are generated and scored.

    Read by: train, eval, forgetting.
    """

    max_examples: PositiveInt | None = None
    """Largest number of rows of an evaluation set, unless its recipe sets one. Default: all rows."""
    max_new_tokens: PositiveInt = 256
    """Longest generated answer in tokens; 256 are enough for half a minute of fast speech."""
    repetition_penalty: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Penalty for tokens that the answer already contains: their logits are divided by it if positive, otherwise
    multiplied (Keskar et al. 2019); 1 means no penalty.
    """
    batch_seconds: PositiveFloat = 60
    """Seconds of audio in a batch; results do not depend on it."""
