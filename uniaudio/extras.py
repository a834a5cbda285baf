"""Packages that only some features need, by the extra of the installation that brings each."""

from __future__ import annotations

import importlib.util

from uniaudio.errors import UserError

EXTRAS = {  # the package as it is imported, and its extra
    "deepspeed": "deepspeed",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "matplotlib": "report",
    "sklearn": "report",
    "jiwer": "metrics",
    "sacrebleu": "metrics",
    "nltk": "metrics",
    "aac_metrics": "captions",
    "espeakng_loader": "speech",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "gradio": "serve",
}


def has_package(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # blocked, or half removed
        return False


def require_package(package: str, feature: str) -> None:
    """Refuse a feature whose package is not installed.

    Args:
        package: as it is imported. feature: what needs it, as the user wrote it ("train.trackers: wandb").

    Raises:
        UserError: naming the extra that brings the package.
    """
    if not has_package(package):
        extra = EXTRAS.get(package)
        name = f"'uniaudio[{extra}]'" if extra else package
        needed = f"the extra {extra}" if extra else f"the package {package}"
        raise UserError(f"{feature} needs {needed}: pip install {name}")
