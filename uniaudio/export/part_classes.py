"""The classes that a description may name, by ``module:Class``.

Empty here: an exported folder holds its own table, with no more classes than its encoder is made of.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

PARTS: Mapping[str, type[nn.Module]] = {}
