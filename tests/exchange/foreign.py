"""Runs the code of exported README.md files in a Python that cannot import this project, and what it loads.

python -I foreign.py PICTURE EXPORT...      writes drawn.png and foreign.json into each EXPORT
"""

import json
import os
import re
import sys
from pathlib import Path

PROMPT = "a small blue star on the left"


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("uae_lightning", "callbacks"):
            raise ImportError(f"{name} is this project, which foreign code does not have")


def main(picture: Path, exports: list[Path]) -> None:
    sys.meta_path.insert(0, Blocked())
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    for export in exports:
        os.chdir(export)
        code = "\n".join(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S))
        names = {"__name__": "foreign"}
        exec(compile(code, "README.md", "exec"), names)
        names["draw"](PROMPT, seed=3).save("drawn.png")
        found = {"caption": names["caption"](Image.open(picture)), **adapters(names)}
        Path("foreign.json").write_text(json.dumps(found))
    assert not [name for name in sys.modules if name.split(".")[0] == "uae_lightning"]


def adapters(names: dict) -> dict[str, float]:
    """How far base and adapter are from the merged weights, and from the base alone."""
    import torch

    found, pipe = {}, names["pipe"]
    inputs = names["tokenizer"](names["prompts"]["condition"], return_tensors="pt")
    merged, adapted = names["encoder"](**inputs).logits, names["adapted"](**inputs).logits
    with names["adapted"].disable_adapter():
        base = names["adapted"](**inputs).logits
    found["encoder"] = [(adapted - merged).abs().max().item(), (base - merged).abs().max().item()]

    latents = names["noise"](0)
    states = torch.randn(1, 5, names["condition"]("").shape[-1], generator=torch.Generator().manual_seed(0))

    def velocity(transformer):
        if "pooled" in names:  # SD3
            return transformer(latents, states, names["pooled"], torch.tensor([500.0])).sample
        pipe.transformer = transformer
        return names["velocity"](latents, torch.tensor(0.5), states)

    merged, adapted = velocity(pipe.transformer), velocity(names["transformer"])
    names["transformer"].disable_lora()
    base = velocity(names["transformer"])
    found["decoder"] = [(adapted - merged).abs().max().item(), (base - merged).abs().max().item()]
    names["transformer"].delete_adapters(["default_0"])
    pipe.transformer = names["transformer"]
    pipe.load_lora_weights(names["root"] / "decoder_lora", weight_name="pytorch_lora_weights.safetensors")
    pipe.transformer.enable_lora()
    found["pipeline"] = (velocity(pipe.transformer) - merged).abs().max().item()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [Path(name).resolve() for name in sys.argv[2:]])
