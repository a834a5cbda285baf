"""Train universal audio encoders with the next-token loss of a frozen language model."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uniaudio.api.models import TrainedModel, load_model
    from uniaudio.api.runs import Run, check, train
    from uniaudio.build.embedder import Embedder, EncoderOutput, load_encoder
    from uniaudio.errors import UserError
    from uniaudio.train.callbacks import Callback, CallbackEvent

__all__ = [
    "Callback",
    "CallbackEvent",
    "Embedder",
    "EncoderOutput",
    "Run",
    "TrainedModel",
    "UserError",
    "__version__",
    "check",
    "load_encoder",
    "load_model",
    "train",
]
PLACES = {  # where each name is defined; imported when it is first used, so that `import uniaudio` costs nothing
    "Callback": "uniaudio.train.callbacks",
    "CallbackEvent": "uniaudio.train.callbacks",
    "Embedder": "uniaudio.build.embedder",
    "EncoderOutput": "uniaudio.build.embedder",
    "Run": "uniaudio.api.runs",
    "TrainedModel": "uniaudio.api.models",
    "UserError": "uniaudio.errors",
    "check": "uniaudio.api.runs",
    "load_encoder": "uniaudio.build.embedder",
    "load_model": "uniaudio.api.models",
}

if not TYPE_CHECKING:

    class CallablePackage(ModuleType):
        """The package ``uniaudio.train``, which is also the function of that name, see ``uniaudio.api.runs.train``."""

        def __call__(self, *args: Any, **options: Any) -> Any:
            from uniaudio.api.runs import train as run

            return run(*args, **options)

    importlib.import_module("uniaudio.train").__class__ = CallablePackage  # the package's own file is empty

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module 'uniaudio' has no attribute '{name}'")
        return getattr(importlib.import_module(PLACES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
