"""Loads a caption set, a cache and an export's adapter for ComfyUI in a Python that cannot import this project.

python -I foreign_data.py FOLDER      where `captioned`, `cache` and `exported` lie; writes foreign_data.json there
"""

import io
import json
import sys
import tarfile
from pathlib import Path


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("uae_lightning", "callbacks"):
            raise ImportError(f"{name} is this project, which foreign code does not have")


def main(root: Path) -> None:
    sys.meta_path.insert(0, Blocked())
    found = {"shards": shards(root / "captioned"), "rows": rows(root / "captioned" / "captions.jsonl")}
    found |= {"cache": cached(root / "cache"), "comfyui": comfyui(root / "exported" / "comfyui_lora.safetensors")}
    (root / "foreign_data.json").write_text(json.dumps(found))


def shards(folder: Path) -> dict[str, list]:
    """Name in the set -> key, caption and size of the picture, from WebDataset shards."""
    from PIL import Image

    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {tuple(member.name.split(".")): tar.extractfile(member).read() for member in tar}
        for (name, suffix), content in files.items():
            if suffix not in ("txt", "json"):
                picture = Image.open(io.BytesIO(content))
                picture.load()
                assert picture.mode in ("RGB", "L", "P") and not picture.getexif(), (name, picture)
                about = json.loads(files[name, "json"])
                found[name] = [about["key"], files[name, "txt"].decode(), picture.size]
    return found


def rows(file: Path) -> list[list]:
    """Name, caption and whether there is a picture, of each line."""
    lines = map(json.loads, file.read_text().splitlines())
    return [[line["name"], line["caption"], (file.parent / line["image"]).is_file()] for line in lines]


def cached(folder: Path) -> list[list]:
    """Key, caption, shape of the latents and of the states of each sample."""
    from safetensors.numpy import load_file

    found = []
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = load_file(shard)
        for row, latents in enumerate(tensors["latents"]):
            (state, text), (states_end, text_end) = tensors["ends"][row : row + 2].tolist()
            states = tensors["states"][state:states_end]
            key, caption = json.loads(tensors["text"][text:text_end].tobytes())
            found.append([key, caption, latents.shape, states.shape])
    return found


def comfyui(file: Path) -> list[str]:
    """The layers that have all three tensors, under the names that ComfyUI looks for."""
    from safetensors.numpy import load_file

    state = load_file(file)
    layers = sorted(name.removesuffix(".alpha") for name in state if name.endswith(".alpha"))
    for layer in layers:
        down, up = state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] and (up.any() or layer.endswith("1.attn.add_q_proj")), layer
    return layers  # `up` starts at zero, and stays there where nothing reaches the picture: the last block's text query


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
