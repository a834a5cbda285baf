"""DeepSpeed ZeRO (Rajbhandari et al. 2020): optimizer states, gradients and parameters spread over the ranks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from uniaudio.train.engines.base import MOMENTS, Engine, Whole

if TYPE_CHECKING:
    from uniaudio.train.checkpoint.reading import MomentFiles

BUCKET = 50_000_000  # gradients exchanged at a time; DeepSpeed's own 500 million would take 2 GB


class ZeroEngine(Engine):
    """A DeepSpeed engine that we drive step by step.

    bf16 comes from autocast, as in the other engines, so DeepSpeed itself works in float32. It leaves a step out by
    itself when the norm of the gradients is not finite.

    Args:
        settings: DeepSpeed's config, as accelerate read it. clip: largest norm of the gradients.
    """

    gathers = True

    def __init__(
        self,
        plain: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None,
        settings: Mapping[str, Any],
        clip: float,
    ) -> None:
        import deepspeed  # seconds to import, and only some runs want it

        super().__init__(plain, optimizer, precision)
        self.stage = int(settings["zero_optimization"]["stage"])
        self.name = f"zero{self.stage}"
        self.whole = self.stage < 3
        config = make_deepspeed_config(settings, clip)
        # spread tensor by tensor: `initialize` would first take all of the model to the device
        if self.stage == 3:
            deepspeed.zero.Init(module=plain, config_dict_or_path=config)
        engine, *_ = deepspeed.initialize(model=plain, optimizer=optimizer, config=config)
        self.engine: Any = engine
        self.called = engine
        self.tools: Any = deepspeed.utils

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def forward(self, *given: Any) -> Any:
        return self.called(*given)  # autocast around it would be switched off; see autocast_inside

    def backward(self, objective: Tensor) -> None:
        self.engine.backward(objective)

    def step(self, max_norm: float) -> float:
        if self.stage == 0:  # DeepSpeed would tell no norm, and apply what is not finite
            return super().step(max_norm)
        self.engine.step()
        if not self.engine.was_step_applied():
            return float("nan")
        norm = self.engine.get_global_grad_norm()
        return float(norm)

    def link_moments(self) -> None:
        """Let DeepSpeed find the moments by parameter; it does so too early, after the first group's update."""
        self.engine.optimizer._hp_optimizer_states_linked = False
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def list_trained(self) -> Iterator[Whole]:
        if self.stage == 0:
            yield from super().list_trained()
            return
        if self.stage < 3 and self.optimizer.state:
            self.link_moments()
        for name, parameter in self.plain.named_parameters():
            if not parameter.requires_grad:
                continue
            moments = {}
            if self.optimizer.state:
                moments = {
                    kind: self.tools.safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS
                }
            yield Whole(name, self.tools.safe_get_full_fp32_param(parameter), moments)

    def load_moments(self, saved: MomentFiles, updates: int) -> None:
        if self.stage == 0:
            super().load_moments(saved, updates)
            return
        inner = self.engine.optimizer
        # this rank's flat parts of the weights, of which AdamW would make its states at the first update
        parts = (
            inner.single_partition_of_fp32_groups if self.stage < 3 else inner.fp32_partitioned_groups_flat
        )
        for flat in parts:
            self.optimizer.state[flat] = {kind: torch.zeros_like(flat) for kind in MOMENTS}
            self.optimizer.state[flat]["step"] = torch.zeros((), device=self.get_step_device(flat))
        if self.stage < 3:
            self.link_moments()
        for name, parameter in self.plain.named_parameters():
            if parameter.requires_grad and saved.has(name):
                for kind in MOMENTS:
                    value = saved.get(name, kind).to(self.engine.device)
                    self.tools.safe_set_full_optimizer_state(parameter, value, kind)
        for state in self.optimizer.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(updates))

    def close(self) -> None:
        self.engine.destroy()
        super().close()


def make_deepspeed_config(settings: Mapping[str, Any], clip: float) -> dict[str, Any]:
    """Return DeepSpeed's config with what belongs to the run config filled in."""
    config = copy.deepcopy(dict(settings))
    for unset in ("train_batch_size", "bf16", "fp16", "optimizer", "scheduler"):
        config.pop(unset, None)
    config |= {
        "train_micro_batch_size_per_gpu": 1,  # a packed micro-batch counts as one
        "gradient_accumulation_steps": 1,  # the loop says which micro-batch is the last, and divides
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    given = {k: v for k, v in config["zero_optimization"].items() if v != "auto"}
    config["zero_optimization"] = {"reduce_bucket_size": BUCKET, **given}
    return config
