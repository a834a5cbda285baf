"""``python -m uniaudio.train CONFIG ...`` whose layers are compiled by a backend that needs little time."""

import json
import sys
from functools import partial

from torch._dynamo.utils import counters

from uniaudio.cli import main
from uniaudio.model.compile import compile_layers
from uniaudio.train import stage_setup as starting
from uniaudio.train.engines import accelerator

if __name__ == "__main__":
    starting.compile_layers = partial(compile_layers, backend="eager")
    accelerator.refuse_without_compiler = lambda device: None
    try:
        main(["train", *sys.argv[1:], "train.compile=true"])
    finally:
        print(json.dumps({"graphs": counters["stats"]["unique_graphs"]}))
