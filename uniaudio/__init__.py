"""Train universal audio encoders by asking them questions through a frozen language model."""

__version__ = "0.1.0"
