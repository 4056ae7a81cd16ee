"""Where weights live: folders on disk, folders that are shipped inside the package, or models on the hub."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

SHIPPED = "shipped:"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def resolve(path: str | Path, files: list[str] | None = None) -> Path:
    """The folder (or file) that `path` names.

    Args:
        path: "shipped:WING/NAME" for what comes with the package, in `uae_lightning/WING/weights/NAME`; a path here,
            in which "~" is the home folder; or, where that does not exist, a hub id such as
            "Qwen/Qwen2.5-VL-3B-Instruct", which is downloaded once into the cache of `huggingface_hub`. For a model
            without weights (`weightless`) the configs that come with the package do.
        files: patterns of the files that are wanted of a model on the hub; None is all of them.

    Raises:
        FileNotFoundError: there is nothing at that place; the message says where it looked and what to do.
    """
    text = str(path)
    if text.startswith(SHIPPED):
        if ".." in Path(text.removeprefix(SHIPPED)).parts:
            raise FileNotFoundError(f"{text!r} leaves the package: {SHIPPED}NAME is of a folder that comes with it")
        wing, _, name = text.removeprefix(SHIPPED).partition("/")
        found = _package() / wing / "weights" / name
        remedy = "train the shipped weights with `uae bootstrap`, or install the package with its weights"
    else:
        found = Path(text).expanduser()
        if not found.exists() and HUB_ID.fullmatch(text):
            return _from_hub(text, files)
        remedy = f"correct the path, or name weights that come with the package as {SHIPPED}NAME, or a hub id"
    if not found.exists():
        raise FileNotFoundError(f"{text!r} does not exist (looked at {found}): {remedy}")
    return found


def weightless() -> bool:
    """True inside `with torch.device("meta"):`, where models have shapes and no weights."""
    import torch  # here, so that commands that load nothing need not wait for it

    return torch.get_default_device().type == "meta"


def _package() -> Path:
    return Path(str(resources.files("uae_lightning")))


def _from_hub(name: str, files: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    if weightless():
        files, known = ["*.json"], _package() / "models" / "architectures" / name.replace("/", "--")
        if known.exists():
            return known
    try:
        return Path(snapshot_download(name, allow_patterns=files, ignore_patterns=["*.fp16.*", "*.fp16-*"]))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then `hf auth login` with a token "
            "of that account (or set HF_TOKEN), and start again"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder here nor a public model on the hub: correct it; for a private model run "
            "`hf auth login` first"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is no folder here and not in the hub's cache, and the hub cannot be reached (HF_HUB_OFFLINE, or "
            f"no connection): run `hf download {name}` where there is a connection, or give a local folder"
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"the hub did not give {name}: {error}") from error
