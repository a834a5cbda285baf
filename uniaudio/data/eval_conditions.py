"""Named degradations of the clips of an evaluation set: the same for everybody, so figures can be compared."""

from __future__ import annotations

from typing import Any

from uniaudio.data.augment import AugmentStep


def steps(*items: dict[str, Any]) -> tuple[AugmentStep, ...]:
    return tuple(AugmentStep.model_validate(item) for item in items)


CONDITIONS: dict[str, tuple[AugmentStep, ...]] = {
    **{f"noise_{db}db": steps({"noise": {"snr_db": (db, db), "kind": "pink"}}) for db in (20, 10, 5, 0)},
    "reverb": steps({"reverb": {"rt60": (0.6, 0.6)}}),
    "far": steps(
        {"reverb": {"rt60": (0.9, 0.9), "direct": 0.5}}, {"noise": {"snr_db": (10, 10), "kind": "pink"}}
    ),
    "telephone": steps(
        {"band": {"low_hz": (300, 300), "high_hz": (3400, 3400)}}, {"codec": {"kind": "mulaw"}}
    ),
    "mp3_small": steps({"codec": {"kind": "mp3", "quality": (0.9, 0.9)}}),
    "opus_small": steps({"codec": {"kind": "opus", "quality": (0.9, 0.9)}}),
    "clipped": steps({"clip": {"share": (0.2, 0.2)}}),
}
