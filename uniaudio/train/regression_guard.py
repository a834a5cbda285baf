"""The regression check in training: guarded sets are probed when it is time."""

from __future__ import annotations

from uniaudio.train.callbacks import StepCallbacks


def check_guards(step: StepCallbacks, over: bool) -> bool:
    """Probe the guarded sets when it is time or the stage is ``over``; return whether the run must stop."""
    guard = step.config.guard
    if guard is None or (step.position.step % guard.every and not over):
        return False
    with step.tracker.show_waiting("probing the guarded sets", plain=True):
        broken = step.run_with_plain_model(step.evaluator.check_guard)
    for sentence in broken:
        step.tracker.warn(f"guard: {sentence}")
    step.tracker.log_event("guard", step=step.position.step, broken=broken)
    return bool(broken) and guard.action == "stop"
