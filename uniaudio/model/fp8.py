"""Frozen linear maps in 8-bit floating point: half the bytes of bfloat16, and FP8 matrix units where there are some.

Numbers are e4m3 (4 bits of exponent, 3 of mantissa, up to 448; Micikevicius et al. 2022) with one float32 scale for
each row of a matrix: for each output of a weight, which is fixed, and for each token, by the token's largest value.
The arithmetic is the same on every device; only CUDA has units for it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float8e4m3fn, UInt8
from torch import Tensor, nn

from uniaudio.errors import UserError

FP8 = "fp8"  # as `decoder.dtype`
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = 1e-30  # of a row of zeros; the gradients of a long batch are small, but not that small
SIZE = 16  # inputs and outputs must be multiples of it for the units
CAPABILITY = (8, 9)  # of the first NVIDIA GPUs that have them


def quantize_rows(rows: Float[Tensor, "R K"]) -> tuple[Float8e4m3fn[Tensor, "R K"], Float[Tensor, "R 1"]]:
    """Return every row in e4m3 and its scale; their product is ``rows`` again.

    It is off by 1/16 of a value at most, or by 2e-6 of the row's largest value where that is more. A row with a value
    that is not finite comes out as NaN.
    """
    rows = rows.float()
    scale = (rows.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (rows / scale).to(E4M3), scale


def multiply_scaled(
    left: Float8e4m3fn[Tensor, "M K"],
    left_scale: Float[Tensor, "M 1"],
    right: Float8e4m3fn[Tensor, "N K"],
    right_scale: Float[Tensor, "N 1"],
    dtype: torch.dtype,
) -> Float[Tensor, "M N"]:
    """Return ``(left_scale left) (right_scale right)^T``, on the units of a GPU (in bfloat16) or in float32."""
    if left.device.type == "cuda":
        result = multiply_on_units(left, left_scale, right, right_scale, torch.bfloat16)
    else:
        with torch.autocast(left.device.type, enabled=False):
            result = left.float() @ right.float().T * left_scale * right_scale.T
    # torch 2.11 compiles a function whose result went through a cast without effect to one without a gradient
    return result if result.dtype == dtype else result.to(dtype)


def multiply_on_units(
    left: Float8e4m3fn[Tensor, "M K"],
    left_scale: Float[Tensor, "M 1"],
    right: Float8e4m3fn[Tensor, "N K"],
    right_scale: Float[Tensor, "N 1"],
    dtype: torch.dtype,
) -> Float[Tensor, "M N"]:
    """Return the product as torch's operation makes it, which takes its right side by columns."""
    return torch._scaled_mm(
        left,
        right.t(),
        scale_a=left_scale,
        scale_b=right_scale.t(),
        out_dtype=dtype,
        use_fast_accum=True,  # with scales by row torch's kernels are slow without it
    )


class FrozenProduct(torch.autograd.Function):
    """``x W^T`` with both in e4m3, and the gradient of ``x``; the weight has none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "T I"],
        weight: UInt8[Tensor, "O I"],
        scale: Float[Tensor, "O 1"],
    ) -> Float[Tensor, "T O"]:
        ctx.save_for_backward(weight, scale)  # not a view of it, which would keep what an engine has gathered
        return multiply_scaled(*quantize_rows(x), weight.view(E4M3), scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "T O"]) -> tuple[Tensor, None, None]:
        """Return ``(gradient scale) W``.

        A scale must not change along the sum, here over the outputs, so the scales of the weight go into the gradient
        before that is rounded. The weight is then exactly that of the forward. The units want it by columns: it is
        turned here, for a second copy would take the memory that was saved.
        """
        weight, scale = ctx.saved_tensors
        turned = weight.view(E4M3).t().contiguous()
        ones = torch.ones(len(turned), 1, device=gradient.device)
        return (
            multiply_scaled(*quantize_rows(gradient.float() * scale.T), turned, ones, gradient.dtype),
            None,
            None,
        )


class Float8Linear(nn.Module):
    """A frozen linear map: the bits of its weight in e4m3 ``[O, I]`` and a scale for each output ``[O, 1]``.

    Takes and returns ``[..., I]`` and ``[..., O]`` in the dtype of its input.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.detach())
        # parameters, so that they are counted, moved and spread over processes like all weights; as bytes, for not
        # every exchange between processes knows the dtype
        self.weight = nn.Parameter(weight.view(torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        y = FrozenProduct.apply(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def convert_to_float8(body: nn.Module) -> None:
    """Put 8-bit linear maps in the place of those in the stacks of layers of a frozen model, one after the other.

    What is outside of the stacks (embeddings, head) stays, and so does a map whose sizes the units cannot take.

    Raises:
        UserError: when there is none that could be replaced.
    """
    stacks = [part for part in body.modules() if isinstance(part, nn.ModuleList)]
    replaced = {
        id(child): (parent, name, child)
        for stack in stacks
        for parent in stack.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and not child.in_features % SIZE and not child.out_features % SIZE
    }
    if not replaced:
        raise UserError(
            f"decoder.dtype: fp8 needs linear layers with sizes that are multiples of {SIZE}, but "
            f"the layers of {type(body).__name__} have none; leave it out"
        )
    for parent, name, child in replaced.values():
        setattr(parent, name, Float8Linear(child))


def refuse_without_units() -> None:
    """Refuse GPUs that cannot multiply in e4m3; a CPU may emulate it, to see what it does to a run.

    Raises:
        UserError: with what the GPU is.
    """
    if not torch.cuda.is_available():
        return
    if torch.version.hip is not None or torch.cuda.get_device_capability() < CAPABILITY:
        raise UserError(
            f"decoder.dtype: fp8 needs an NVIDIA GPU of capability {CAPABILITY[0]}.{CAPABILITY[1]} or above (Ada, "
            f"Hopper), not {torch.cuda.get_device_name()}; leave it out"
        )
