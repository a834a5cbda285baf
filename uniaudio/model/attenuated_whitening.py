"""Attenuated whitening: a map that brings the principal components of vectors closer to one size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ATTENUATION = 0.5  # of whitening: 0 leaves components as they are, 1 makes all equally large
SMALLEST_COMPONENT = (
    0.1  # added to the variances, as a share of their mean: few clips say little of most components
)


def attenuate_components(clips: Float[Tensor, "C E"]) -> Float[Tensor, "E E"]:
    """Return the symmetric map that brings the components of clips closer to one size, and their mean square to 1.

    A component of variance ``v`` is multiplied by ``v ** (-t / 2)`` with ``t = ATTENUATION``: attenuated whitening
    (Mukundan et al. 2019, "Understanding and improving kernel local descriptors"). Where nothing varies, the map
    changes nothing.

    Args:
        clips: mean frames, around 0.
    """
    exact = clips.double()
    variances, vectors = torch.linalg.eigh(exact.T @ exact / len(exact))
    variances = variances.clamp(min=0)
    if not variances.any():
        return torch.eye(len(variances), dtype=clips.dtype, device=clips.device)
    factors = (variances + SMALLEST_COMPONENT * variances.mean()) ** (-ATTENUATION / 2)
    size = (variances * factors.square()).mean().sqrt()
    return ((vectors * (factors / size)) @ vectors.T).to(clips.dtype)
