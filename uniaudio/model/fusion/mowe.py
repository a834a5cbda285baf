"""MoWE: a strong encoder helped by weak ones that hear only the clips routed to them, and its routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniaudio.distributed import world_size
from uniaudio.model.encoders.base import AudioEncoder, is_trained
from uniaudio.model.float32 import Float32Linear, raise_to_float32
from uniaudio.model.fusion.align import count_frames_at
from uniaudio.model.fusion.base import average_per_clip, entropy, name_columns, set_linear
from uniaudio.model.fusion.encoder import CompositeEncoder, find_components
from uniaudio.ragged import Ragged
from uniaudio.types import Auxiliary, Encoded

SILENCE = 640  # samples on which an encoder without clips runs, so that every rank runs every module


class IndependentRouter(nn.Module):
    """``r = softmax(theta)``: learned, the same for every clip."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(count))

    def forward(self) -> Tensor:
        """Return the weights ``[M]``."""
        return raise_to_float32(self.theta).softmax(0)


class DependentRouter(nn.Module):
    """``r(x) = softmax(W pool(z_base(x)) + b)``; pool is the mean over the clip's frames, or with ``per_frame``
    nothing.

    With ``prompt_dim`` the mean embedding of the question's tokens is projected and joined to the pooled frames (the
    idea of prompt-aware mixture, arXiv 2502.15178, whose own gate equation is not public to us). Without a question, as
    in probes, zeros stand in its place.
    """

    def __init__(self, dim: int, count: int, per_frame: bool = False, prompt_dim: int | None = None) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.read_prompt = None if prompt_dim is None else nn.Linear(prompt_dim, dim, bias=False)
        self.weigh = Float32Linear(dim if prompt_dim is None else 2 * dim, count)

    def read(self, frames: Ragged) -> Tensor:
        """Return what is routed by: ``[C, E]``, or the frames themselves ``[A, E]``."""
        if self.per_frame:
            return frames.values
        return frames.with_values(raise_to_float32(frames.values)).mean()

    def forward(self, read: Tensor, owner: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return the weights of every row of ``read``: ``[rows, M]``.

        Args:
            owner: ``[rows]`` the clip of every row, where rows are frames. prompts: ``[C, P]``.
        """
        if self.read_prompt is not None:
            if prompts is None:
                question = read.new_zeros(read.shape)
            else:
                question = self.read_prompt(prompts.to(self.read_prompt.weight.dtype))
                question = question if owner is None else question[owner]
            read = torch.cat([read, question.to(read.dtype)], -1)
        return self.weigh(read).softmax(-1)


def smooth_weights(weights: Tensor, keep: float, epsilon: float) -> Tensor:
    """Return ``keep r + (1 - keep) epsilon`` (MoWE: 0.9 r + 0.1 epsilon, epsilon = 0.1 / M as printed)."""
    return keep * weights + (1 - keep) * epsilon


class MoweEncoder(CompositeEncoder):
    """Mixture of weak encoders in the style of MoWE-Audio (arXiv 2409.06635): the symbols of its equations are not
    public.

    ``z = [z_base; r_ind[i] f_i(x); r~_dep[j] f_j(x)]`` on features, ``i = argmax r_ind``, ``j = argmax r_dep(x)``, one
    weak encoder each. ``r~ = 0.9 r + 0.1 epsilon`` with ``epsilon = 0.1 / M`` as printed. A weak encoder runs once, on
    the clips that chose it. In training ``0.1 (H(r_ind) + mean_x H(r_dep(x)) - H(mean_x r_dep(x)))``, means over the
    global batch: both routers become confident, and the second one may not send all clips to one encoder. The gradient
    of these three terms reaches the routers alone. The task loss teaches a router through the weight on its frames.

    Args:
        encoders: by name, the base first, then the pool of M weak ones.
        rate: frames per second of the result. method: see ``align``.
        weak_dim: width that weak frames are projected to when they differ from it.
        routers: ``both``, ``dependent`` or ``independent``.
        per_frame: the second router decides for every frame; a weak encoder then runs on the clips in which any frame
            chose it. prompt_dim: see ``DependentRouter``. keep, epsilon: see ``smooth_weights``. scales:
            see ``CompositeEncoder``.
    """

    auxiliary = ("entropy_independent", "entropy_dependent", "diversity")

    def __init__(
        self,
        encoders: Mapping[str, AudioEncoder],
        rate: float,
        method: str = "area",
        weak_dim: int | None = None,
        routers: str = "both",
        per_frame: bool = False,
        prompt_dim: int | None = None,
        keep: float = 0.9,
        epsilon: float | None = None,
        entropy_weight: float = 0.1,
        diversity_weight: float = 0.1,
        scales: bool = False,
    ) -> None:
        super().__init__(encoders, rate, method, scales=scales)
        self.base, *self.pool = encoders
        base, *weak = encoders.values()
        width = weak_dim or max(encoder.dim for encoder in weak)
        self.project = nn.ModuleList(
            nn.Identity() if encoder.dim == width else nn.Linear(encoder.dim, width) for encoder in weak
        )
        self.independent = IndependentRouter(len(weak)) if routers != "dependent" else None
        self.dependent = (
            DependentRouter(base.dim, len(weak), per_frame, prompt_dim) if routers != "independent" else None
        )
        self.keep, self.epsilon = keep, 0.1 / len(weak) if epsilon is None else epsilon
        self.entropy_weight, self.diversity_weight = entropy_weight, diversity_weight
        self.width, self.frame_rate = width, rate
        self.dim = base.dim + width * sum(router is not None for router in (self.independent, self.dependent))
        self.layer_dims = (*base.layer_dims, self.dim)
        self.takes_prompts, self.prompt_dim = prompt_dim is not None, prompt_dim

    def scale(self, index: int, frames: Ragged) -> Ragged:
        """Scale the frames of an encoder, the base being number 0."""
        if self.scales is None:
            return frames
        scales: Any = self.scales[index]
        return frames.with_values(scales[0](frames.values))

    @torch.no_grad()
    def start_from_streams(
        self, streams: Sequence[Tensor], shares: Tensor, whitening: Tensor | None = None
    ) -> None:
        """Let every weak encoder begin with its principal components; nothing is whitened."""
        for project, stream in zip(self.project, streams[1:], strict=True):
            if isinstance(project, nn.Linear):
                set_linear(project, find_components(stream, shares, self.width))

    def num_frames(self, samples: int) -> int:
        """Return ``ceil(seconds * rate)``, at least one."""
        return count_frames_at(self.meeting_rate, samples)

    def forward(
        self, audio: Ragged, layers: bool = False, masks: Tensor | None = None, prompts: Tensor | None = None
    ) -> Encoded:
        """Encode C clips; ``layers`` are the base's hidden states at the meeting rate and the result.

        Args:
            prompts: ``[C, P]`` mean embedding of the question about every clip, for a router that reads it.
        """
        lengths = self.count_meeting_frames(audio)
        encoded = self.run(self.base, audio, layers, masks)
        base = self.scale(0, self.align_states(self.base, [encoded.frames], lengths)[0])
        chosen, weights, stats, losses = self.route(base, prompts)
        added = self.encode_routed(audio, base, chosen, weights, masks)
        fused = base.with_values(torch.cat([base.values, *added], -1))
        hidden_states = None
        if layers:
            assert encoded.layers is not None
            hidden_states = (*self.align_states(self.base, encoded.layers, lengths), fused)
        return Encoded(fused, hidden_states, losses, stats)

    def route(
        self, base: Ragged, prompts: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], dict[str, Auxiliary]]:
        """Return for each router the chosen encoder ``[A]`` and its weight ``[A, 1]`` per frame, statistics and
        losses.
        """
        owner = base.row_index()
        chosen, weights = [], []
        stats: dict[str, Tensor] = {}
        losses: dict[str, Auxiliary] = {}
        routed = base.values.new_zeros(len(base.values), len(self.pool), dtype=torch.float32)
        if self.independent is not None:
            shares = self.independent()
            best = shares.argmax()
            chosen.append(best.expand(len(owner)))
            weights.append(shares[best].expand(len(owner), 1))
            routed = routed + nn.functional.one_hot(best, len(self.pool))
            if self.training:
                losses["entropy_independent"] = self.compute_mean_entropy(
                    self.independent().float()[None], len(base)
                )
        if self.dependent is not None:
            read = self.dependent.read(base)
            rows = owner if self.dependent.per_frame else None
            shares = self.dependent(read, rows, prompts)
            weight, best = smooth_weights(shares, self.keep, self.epsilon).max(-1, keepdim=True)
            spread = slice(None) if self.dependent.per_frame else owner
            chosen.append(best[spread, 0])
            weights.append(weight[spread])
            routed = routed + nn.functional.one_hot(best[spread, 0], len(self.pool))
            stats["routing entropy"] = (
                average_per_clip(base, entropy(shares))
                if rows is not None
                else entropy(shares.detach().float())
            )
            if self.training:
                alone = self.dependent(read.detach(), rows, prompts).float()
                losses["entropy_dependent"] = self.compute_mean_entropy(alone, len(alone))
                losses["diversity"] = Auxiliary(
                    alone.sum(0), float(len(alone)), lambda mean: -self.diversity_weight * entropy(mean)
                )
        routers = max(len(chosen), 1)
        return (
            chosen,
            weights,
            {**name_columns("weak", self.pool, average_per_clip(base, routed / routers)), **stats},
            losses,
        )

    def compute_mean_entropy(self, shares: Tensor, count: int) -> Auxiliary:
        """Return the mean entropy of ``count`` rows; one row stands for all of them where the clip does not matter."""
        total = entropy(shares).sum() * (count / max(len(shares), 1))
        return Auxiliary(total[None], float(count), lambda mean: self.entropy_weight * mean[0])

    def encode_routed(
        self,
        audio: Ragged,
        base: Ragged,
        chosen: list[Tensor],
        weights: list[Tensor],
        masks: Tensor | None,
    ) -> list[Tensor]:
        """Run every weak encoder on its clips and return, for each router, the weighted frames ``[A, width]``."""
        owner = torch.repeat_interleave(torch.arange(len(base)), base.lengths)
        results = [base.values.new_zeros(len(owner), self.width) for _ in chosen]
        within = Ragged.count_within_rows(base.lengths)
        picks = [pick.cpu() for pick in chosen]
        for index, name in enumerate(self.pool):
            wanted = torch.stack([pick == index for pick in picks]).any(0)
            clips = owner[wanted].unique()
            place = torch.full((len(base),), -1)
            place[clips] = torch.arange(len(clips))
            frames = self.encode_with(index, name, audio.select(clips), renumber_masks(masks, place))
            if frames is None:
                continue
            offsets = Ragged.find_row_starts(base.lengths[clips])
            for slot, (pick, weight) in enumerate(zip(picks, weights, strict=True)):
                rows = (pick == index).nonzero()[:, 0]
                source = offsets[place[owner[rows]]] + within[rows]
                rows, source = (x.to(base.device, non_blocking=True) for x in (rows, source))
                scaled = frames[source] * weight[rows]
                results[slot] = results[slot].index_add(0, rows, scaled.to(results[slot].dtype))
        return results

    def encode_with(self, index: int, name: str, audio: Ragged, masks: Tensor | None) -> Tensor | None:
        """Return a weak encoder's frames ``[A', width]`` of its clips.

        Without clips it runs on a moment of silence and gives no frames, where other ranks may have some: sharded
        weights are fetched and gradients exchanged module by module, so every rank must run every module.
        """
        silent = not len(audio)
        together = world_size() > 1 or (torch.is_grad_enabled() and is_trained(self.encoders[name]))
        if silent:
            if not together and not is_trained(self.project[index]):
                return None
            silence = torch.zeros(SILENCE, dtype=audio.values.dtype, device=audio.device)
            audio = Ragged(silence, torch.tensor([SILENCE]))
        encoded = self.run(name, audio, layers=False, masks=masks)
        aligned = self.align_states(name, [encoded.frames], self.count_meeting_frames(audio))[0]
        frames = self.project[index](self.scale(1 + index, aligned).values)
        return frames[:0] + 0 * frames.sum() if silent else frames


def renumber_masks(masks: Tensor | None, place: Tensor) -> Tensor | None:
    """Return the masks of some clips, numbered anew: ``place [C]`` is a clip's new number, or -1 where it is left
    out.
    """
    if masks is None or not len(masks):
        return None
    number = place[masks[:, 0]]
    return torch.cat([number[:, None], masks[:, 1:]], 1)[number >= 0]
