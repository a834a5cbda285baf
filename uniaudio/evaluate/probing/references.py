"""What the scores of a run are compared with: the encoder that it started from, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REFERENCES = "references"  # the key of stored results that holds them by run
AT_BEST = "untrained, at its best"
AS_TRAINED = "untrained, with the run's settings"


@dataclass(frozen=True)
class Reference:
    """The names of the untrained encoder of a run, whether a table has scores of it or not.

    Args:
        start: it reads clips by the settings of the run. best: it reads them as its authors trained it; what a run has
            learned beyond that is the gain of its training. None where it is not known.
    """

    start: str | None = None
    best: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that are known, the one that counts first."""
        return list(dict.fromkeys(name for name in (self.best, self.start) if name is not None))

    def rename(self, names: Mapping[str, str]) -> Reference:
        """Return it with other names for some models."""
        start, best = (None if name is None else names.get(name, name) for name in (self.start, self.best))
        return Reference(start, best)


def read_references(result: Mapping[str, Any]) -> dict[str, Reference]:
    """Return the references of stored results by run; those that state none have none."""
    stored = result.get(REFERENCES) or {}
    return {run: Reference(**roles) for run, roles in stored.items()}


def describe_roles(references: Mapping[str, Reference]) -> dict[str, str]:
    """Return in plain words what the untrained encoders of a table are, by their names."""
    roles = {name: AS_TRAINED for one in references.values() if (name := one.start) is not None}
    return roles | {name: AT_BEST for one in references.values() if (name := one.best) is not None}
