"""One rank: runs the commands of a JSON list one after the other, as `uae` would, until one fails."""

from __future__ import annotations

import json
import sys

import torch

from uae_lightning.cli import main

torch.set_num_threads(1)

for command in json.loads(sys.stdin.read()):
    print("uae", *command, flush=True)
    if code := main(command):
        sys.exit(code)
