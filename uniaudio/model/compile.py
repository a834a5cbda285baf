"""The repeated layers of packed encoders and decoders, compiled by torch: once for a stack, for batches of any size.

A layer is compiled by itself ("regional"), so a stack of 32 costs as much as one of 2, and what lies between the layers
stays as it is: exchange of gradients, recomputation, low-rank updates, parameters and their names. On CUDA a layer is
one graph around torch's variable-length kernel; where attention goes segment by segment, it lies between the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from uniaudio.errors import UserError, read_first_line
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.depth_injection import find_stock_layers
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.whisper_decoder import WhisperTextDecoder

BACKEND = "inductor"
LIMIT = 32  # compilations of one function: trained and frozen layers of several encoders, with and without gradients


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = BACKEND) -> int:
    """Let torch compile the layers of all packed encoders and decoders in a model; return the number of stacks.

    Compilation itself happens in the first calls. The number of tokens is dynamic from the start. What was compiled
    before in this process is forgotten, and settings of torch's compiler are changed for all of it.

    Args:
        backend: of ``torch.compile``.

    Raises:
        UserError: when no part of the model runs packed.
    """
    torch._dynamo.reset()
    settings: Any = torch._dynamo.config
    # it would cut layers where DDP's buckets end; gradients go out between layers anyway
    settings.optimize_ddp = False
    settings.specialize_float = True  # rates of dropout and the like are constants, not inputs
    settings.recompile_limit = LIMIT
    stacks = 0
    for part in model.modules():
        if isinstance(part, TextDecoder):
            stacks += part.packed
            for layer in find_stock_layers(part.lm) if part.packed else ():
                layer.compile(dynamic=True, backend=backend)
        elif isinstance(part, AudioEncoder | WhisperTextDecoder) and "layer" in vars(part):
            function: Any = part.layer
            part.layer = torch.compile(function, dynamic=True, backend=backend)
            stacks += 1
    if not stacks:
        raise UserError("train.compile: neither an encoder nor the decoder runs packed; leave it out")
    return stacks


def refuse_without_compiler(device: torch.device) -> None:
    """Compile a function of a small tensor, so that what is missing shows before models are built.

    Raises:
        UserError: when that fails, with the compiler's reason.
    """

    def waves(x: Tensor) -> Tensor:
        return x.sin() + x.cos()

    try:
        torch.compile(waves)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as problem:
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        raise UserError(
            f"train.compile: torch cannot compile on this machine ({read_first_line(problem)}); install {needs} "
            "with Python's headers, or leave train.compile out"
        ) from problem
