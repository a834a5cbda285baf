"""The projectors of published audio language models, so that a run can be exported to their formats.

The parameters have the names of the stock classes: ``state_dict`` of the projector is the part of a stock checkpoint
under ``multi_modal_projector``. Marks that these formats put around a clip's tokens are learned beside it and become
rows of the exported table of embeddings.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.encoders.chunking import cut_into_chunks, list_chunk_lengths
from uniaudio.model.init_args import InitArgsModule
from uniaudio.model.mel import REACH
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

INITIAL_MARK = 0.02  # standard deviation of a new mark, as of token embeddings


class StockProjector(Adapter):
    """Stacked frames through the projector of a published model, and a learned mark before or behind a clip's tokens.

    Args:
        projector: stacked frames ``[N, stack * E]`` to tokens ``[N, D]``, parameters named as in the stock class.
        stack: neighbouring frames that make one token; a last group that is not full ends in zeros.
        piece: frames of 30 s, after which a new group begins.
        begin, end: whether a learned token stands before and behind those of a clip.
    """

    begin: nn.Parameter | None
    end: nn.Parameter | None

    def __init__(
        self,
        projector: nn.Module,
        decoder_dim: int,
        stack: int,
        piece: int,
        begin: bool = False,
        end: bool = False,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.kind = name_projector_kind(projector, begin)
        self.stack, self.piece = stack, piece
        for name, wanted in (("begin", begin), ("end", end)):
            mark = nn.Parameter(torch.randn(1, decoder_dim) * INITIAL_MARK) if wanted else None
            self.register_parameter(name, mark)
        self.num_marks = int(begin) + int(end)

    def num_tokens(self, frames: int) -> int:
        """Return the groups of ``stack`` frames, counted anew every 30 s, and the marks."""
        return self.count_groups(frames) + self.num_marks

    def count_groups(self, frames: int) -> int:
        """Return the tokens of a clip without the marks."""
        return sum(-(-part // self.stack) for part in list_chunk_lengths(frames, self.piece))

    def forward(self, frames: Ragged) -> Ragged:
        groups = frames.map_lengths(self.count_groups)
        values = self.projector(stack_frames(cut_into_chunks(frames, self.piece), self.stack))
        tokens = Ragged(values, groups)
        if not self.num_marks or not len(groups):
            return tokens
        before = [] if self.begin is None else [self.begin.to(values.dtype)]
        behind = [] if self.end is None else [self.end.to(values.dtype)]
        rows = [part for row in tokens.rows() for part in (*before, row, *behind)]
        return Ragged(torch.cat(rows), groups + self.num_marks)


def stack_frames(frames: Ragged, stack: int) -> Float[Tensor, "N S"]:
    """Put every ``stack`` neighbouring frames side by side: ``[A, E]`` to ``[N, stack * E]``, zeros at a row's end."""
    if stack == 1:
        return frames.values
    groups = torch.div(frames.lengths + stack - 1, stack, rounding_mode="floor")
    values = frames.extend_rows(groups * stack).values
    return values.view(int(groups.sum()), stack * values.shape[1])


class OneLinear(InitArgsModule):
    """Qwen2-Audio's projector (arXiv 2407.10759): one linear map."""

    def __init__(self, encoder_dim: int, decoder_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(encoder_dim, decoder_dim)

    def forward(self, frames: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
        """Map frames to tokens."""
        return self.linear(frames)


class TwoLinear(InitArgsModule):
    """The projector of Audio Flamingo 3 (arXiv 2507.08128) and Voxtral (arXiv 2507.13264): two maps around a GELU."""

    def __init__(self, encoder_dim: int, decoder_dim: int, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(encoder_dim, decoder_dim, bias=bias)
        self.linear_2 = nn.Linear(decoder_dim, decoder_dim, bias=bias)

    def forward(self, frames: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
        """Map frames to tokens."""
        return self.linear_2(F.gelu(self.linear_1(frames)))


class RMSNormSwiGLU(InitArgsModule):
    """Ultravox's projector since version 0.5: RMSNorm, a linear map, SwiGLU, RMSNorm, a linear map.

    The gate is the second half of the first map's output.
    """

    def __init__(self, stacked_dim: int, hidden: int, decoder_dim: int) -> None:
        super().__init__()
        self.ln_pre = nn.RMSNorm(stacked_dim, eps=1e-6)
        self.linear_1 = nn.Linear(stacked_dim, hidden, bias=False)
        self.ln_mid = nn.RMSNorm(hidden // 2, eps=1e-6)
        self.linear_2 = nn.Linear(hidden // 2, decoder_dim, bias=False)

    def forward(self, frames: Float[Tensor, "N S"]) -> Float[Tensor, "N D"]:
        """Map stacked frames to tokens."""
        value, gate = self.linear_1(self.ln_pre(frames)).chunk(2, dim=-1)
        return self.linear_2(self.ln_mid(F.silu(gate) * value))


def name_projector_kind(projector: nn.Module, begin: bool) -> str:
    """Return the ``adapter.kind`` that makes a projector, with a mark before a clip's tokens or without."""
    if isinstance(projector, OneLinear):
        return "qwen2_audio"
    if isinstance(projector, RMSNormSwiGLU):
        return "ultravox"
    return "voxtral" if begin else "audio_flamingo3"


def check_frame_rate(kind: str, frame_rate: float, wanted: float) -> None:
    """Refuse an encoder of another frame rate than the stock towers have.

    Raises:
        UserError: naming the setting that gives it.
    """
    if abs(frame_rate - wanted) < 1e-6:
        return
    fix = (
        "set pool: 2 on a Whisper encoder"
        if wanted < frame_rate
        else "leave out pool, or use a Whisper encoder"
    )
    raise UserError(
        f"adapter.kind: {kind} reads {wanted:g} frames per second, but the encoder gives "
        f"{frame_rate:g}; {fix}, or use another adapter"
    )


def make_stock_projector(
    kind: str,
    encoder_dim: int,
    frame_rate: float,
    decoder_dim: int,
    stack: int = 8,
    hidden: int | None = None,
) -> StockProjector:
    """Build the adapter of a published format with new weights.

    Args:
        stack, hidden: of ``ultravox``; the width of the first map, by default 8 times the encoder's.

    Raises:
        UserError: when the encoder's frame rate is not that of the format, or ``hidden`` is odd.
    """
    check_frame_rate(kind, frame_rate, 25.0 if kind in ("qwen2_audio", "audio_flamingo3") else 50.0)
    piece = round(REACH / SAMPLE_RATE * frame_rate)
    if kind == "qwen2_audio":
        projector: nn.Module = OneLinear(encoder_dim, decoder_dim)
        return StockProjector(projector, decoder_dim, 1, piece, begin=True, end=True)
    if kind == "audio_flamingo3":
        return StockProjector(TwoLinear(encoder_dim, decoder_dim, bias=True), decoder_dim, 1, piece)
    if kind == "voxtral":
        projector = TwoLinear(4 * encoder_dim, decoder_dim, bias=False)
        return StockProjector(projector, decoder_dim, 4, piece, begin=True)
    hidden = hidden or 8 * encoder_dim
    if hidden % 2:
        raise UserError(f"adapter.hidden: {hidden} cannot be halved for the gate; use an even number")
    return StockProjector(RMSNormSwiGLU(stack * encoder_dim, hidden, decoder_dim), decoder_dim, stack, piece)
