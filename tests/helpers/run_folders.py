"""Checkpoints of a run folder, for tests that look at what a run has written."""

from pathlib import Path

from uniaudio.train.checkpoint.folders import is_complete, list_places_by_preference, name_replaced_folder


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint whose files all have their size; the contents are not compared."""
    places, _ = list_places_by_preference(run_dir)
    return next(
        (path for place in places for path in (place, name_replaced_folder(place)) if is_complete(path)), None
    )
