"""Data loading in a run config."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from uniaudio.config.limits import MAX_TEXT_TOKENS
from uniaudio.config.records import Strict


class DataConfig(Strict):
    """Data loading: workers, sampling, sequence packing, and what happens to rows that cannot be used.

    Read by: train.
    """

    workers: int = Field(default=2, ge=0)
    """Data-loading processes of each training process; 0 loads in the training process."""
    prefetch: PositiveInt = 2
    """Micro-batches that each worker keeps ready."""
    pool: PositiveInt = 256
    """Rows of a stream that are sorted by length together (length bucketing); more means fuller batches and less
    randomness: but if all clips of each dataset have the same length, every micro-batch then contains a single task.
    Read by: train, check.
    """
    window: PositiveInt = 256
    """Shuffle buffer: rows of a shard (archive, table or stream) that are shuffled together."""
    streams: PositiveInt = 8
    """Independent streams of examples, rounded up to a multiple of `train.micro_batches`; this limits the useful number
    of workers over all processes. Read by: train, check.
    """
    patience: PositiveFloat = 300
    """Seconds to wait for a worker before the run ends with an error."""
    max_outage: PositiveFloat = 600
    """Seconds for which an unreachable network or server is retried, with growing pauses."""
    max_seconds: PositiveFloat | None = None
    """Longest clip in seconds; for longer ones see `long_clips` of a recipe. Default: the stage's
    `budget.audio_seconds`. Read by: recipe commands, eval, forgetting.
    """
    max_text_tokens: PositiveInt = MAX_TEXT_TOKENS
    """Largest number of tokens of a question with its answer, including chat markup but not audio; longer rows are
    skipped. Read by: train, check, eval, ask, forgetting.
    """
    max_skipped_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a dataset's rows that may be skipped before the run ends with an error. Read by: train, check."""
    log_ids: bool = False
    """Write the ids of the examples of each logged step to `metrics.jsonl`."""
