"""Penalties that hold parameters near where a stage began: L2-SP and elastic weight consolidation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniaudio.console import print_warning
from uniaudio.distributed import gather_objects, is_main, rank, sum_over_ranks, world_size
from uniaudio.errors import UserError
from uniaudio.outputs import apply_umask
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.integrity import FileRecord
from uniaudio.train.trainable import LORA
from uniaudio.types import Batch


class Anchor:
    """``weight / 2 * sum_k F_k (theta_k - start_k)^2`` over chosen parameters.

    Without Fisher information ``F = 1``: L2-SP (Li et al. 2018, eq. 2). With it: EWC (Kirkpatrick et al. 2017, eq. 3).
    """

    def __init__(
        self, start: Mapping[str, Tensor], weight: float, fisher: Mapping[str, Tensor] | None = None
    ) -> None:
        self.start, self.weight, self.fisher = start, weight, fisher

    def compute_penalty(self, model: nn.Module) -> Tensor:
        """Return the penalty of the model's parameters as they are now, a scalar with gradient."""
        now = dict(model.named_parameters())
        terms = []
        for name, start in self.start.items():
            squares = (now[name] - start).square()
            terms.append((squares if self.fisher is None else squares * self.fisher[name]).sum())
        return self.weight / 2 * torch.stack(terms).sum()


def find_anchored_parameters(model: nn.Module, pattern: str, where: str) -> dict[str, nn.Parameter]:
    """Return the parameters that a penalty can hold: trained in full, with a name that matches.

    Raises:
        UserError: when there are none.
    """
    anchored = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and LORA not in name and re.search(pattern, name)
    }
    if not anchored:
        raise UserError(f"{where}.on: '{pattern}' matches no parameter that the stage trains in full")
    return anchored


def copy_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of parameters now, apart from what becomes of them."""
    return {name: p.detach().clone() for name, p in parameters.items()}


def iterate_answers(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield every batch once for each of its answers, with the labels of that answer alone.

    The square of the gradient of several answers together would not be the sum of their squares.
    """
    for batch in batches:
        lengths = batch.tokens.lengths - batch.prompt_lengths
        columns = (
            Ragged(values, lengths).rows()
            for values in (batch.label_positions, batch.labels, batch.label_task)
        )
        for positions, ids, tasks in zip(*columns, strict=True):
            yield replace(batch, label_positions=positions, labels=ids, label_task=tasks)


def estimate_fisher(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], examples: Iterable[Batch], count: int
) -> dict[str, Tensor]:
    """Return the diagonal of the empirical Fisher information (Kirkpatrick et al. 2017, section 2.1).

    ``F_k = mean over examples of (d log p(answer | audio, question) / d theta_k)^2`` with the true answers. Ranks share
    the examples out and add up; every rank must call it at the same point.

    Args:
        examples: batches with one answer each, the same on every rank.
    """
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    was_training = model.training
    model.eval()
    seen = 0
    device = next(iter(parameters.values())).device
    for index, batch in enumerate(examples):
        if index >= count:
            break
        if index % world_size() != rank() or not batch.answer_tokens:
            continue
        loss = model(batch.to(device)).total
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.square()
        seen += 1
    model.train(was_training)
    total = float(sum_over_ranks(torch.tensor(float(seen), dtype=torch.float64, device=device)))
    return {name: sum_over_ranks(value) / max(total, 1.0) for name, value in sums.items()}


def load_or_estimate_fisher(
    path: Path,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Iterable[Batch],
    count: int,
    is_resumed: bool,
) -> dict[str, Tensor]:
    """Return the Fisher information of a stage: measured when the stage begins, and read again when it is resumed.

    A file about other parameters, of a config that has been changed since, is measured anew, and so is one that does
    not match its checksum, on whatever rank. A file that is there when the stage begins is of an abandoned try, whose
    weights or examples may have been others.
    """
    stored = read_fisher(path) if is_resumed else {}
    if len({json.dumps(sorted(each)) for each in gather_objects(list(stored))}) > 1:
        stored = {}
    if all(name in stored and stored[name].shape == p.shape for name, p in parameters.items()):
        return {name: stored[name].to(p.device) for name, p in parameters.items()}
    fisher = estimate_fisher(model, parameters, examples, count)
    if is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        save_file({name: value.cpu() for name, value in fisher.items()}, temporary)
        apply_umask(temporary)
        checksum_file(path).write_text(FileRecord.of(temporary).sha256 + "\n")
        temporary.replace(path)
    return fisher


def read_fisher(path: Path) -> dict[str, Tensor]:
    """Read stored Fisher information; nothing where there is none, or what is there is damaged."""
    if not path.is_file():
        return {}
    try:
        if FileRecord.of(path).sha256 == checksum_file(path).read_text(encoding="utf-8").strip():
            return load_file(path)
    except (OSError, UnicodeDecodeError, SafetensorError):
        pass
    if is_main():
        print_warning(f"{path} does not match its checksum; it is measured again")
    return {}


def checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
