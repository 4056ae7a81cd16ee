"""An export on the hub of Hugging Face: the head of its model card, and the upload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import HfApi, ModelCardData, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from uae_lightning.data.hub_dataset import HUB
from uae_lightning.paths import HUB_ID
from uae_lightning.run.spec import read_stage_yaml
from uae_lightning.usage import UsageError

if TYPE_CHECKING:
    from uae_lightning.exchange.card import Facts

TAGS = ("uae-lightning", "image-to-text", "arxiv:2509.09666")  # beside the families of encoder and decoder
OTHER = "other"  # the hub's word for licences that are none of its list: here those of the base models


def head(facts: Facts, license: str | None, stages: list[Path]) -> str:
    """The YAML at the head of README.md, by which the hub files, links and shows a model.

    Args:
        facts: of which the bases that are on the hub are named.
        license: as the hub calls it, such as "apache-2.0"; None says that those of the base models hold.
        stages: folders of the run, whose data sets of the hub are named.
    """
    parts, model = facts.parts.values(), facts.model
    adapted = any(source.history.adapter for source in parts)
    data = ModelCardData(
        license=license or OTHER,
        license_name=None if license else "those-of-the-base-models",
        base_model=list(dict.fromkeys(source.base for source in parts if source.on_hub)) or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *["lora"] * adapted, model.encoder.model.config.model_type, model.decoder.family],
        datasets=data_sets(stages) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def data_sets(stages: list[Path]) -> list[str]:
    """Hub ids of what the stages trained on."""
    found = [read_stage_yaml(stage / "config.yaml").get("data") for stage in stages]
    options = [data.get("init_args") for data in found if isinstance(data, dict)]
    paths = [str(given.get("path")) for given in options if isinstance(given, dict)]
    ids = [path.removeprefix(HUB).partition("?")[0] for path in paths if path.startswith(HUB)]
    return list(dict.fromkeys(name for name in ids if HUB_ID.fullmatch(name) and not Path(name).exists()))


def check_push(name: str) -> None:
    """What can be known before the export is written. Raises UsageError."""
    if not HUB_ID.fullmatch(name):
        raise UsageError(f"--push {name}: give OWNER/NAME, the owner an account or organisation of the hub")
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise UsageError(f"--push {name}: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"--push {name}: HF_HUB_OFFLINE forbids it: unset it, or export without --push")
    if get_token() is None:
        raise UsageError(
            f"--push {name}: no token of the hub: `hf auth login` with one that may write (or set HF_TOKEN), or export "
            "without --push"
        )


def push(folder: Path, name: str, public: bool) -> str:
    """Uploads an export to the model repository OWNER/NAME, made private unless `public`; its address.

    Raises:
        ValueError: the hub did not take it; the folder stays as it is.
    """
    api = HfApi()
    with explained(folder, name, public):
        address = api.create_repo(name, private=not public, exist_ok=True)
        private = bool(api.repo_info(name).private)
        if private != public:
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="An export of uae-lightning")
            return str(address)
    now, remedy = ("private", "without --public") if private else ("public", "with --public")  # it was there before
    raise UsageError(
        f"--push {name}: this repository is {now} already, and nothing was sent: `uae export` {remedy} keeps it so, or "
        f"name another; the export in {folder} stays"
    )


@contextmanager
def explained(folder: Path, name: str, public: bool) -> Iterator[None]:
    privately = "" if public else " --private"
    again = f"the export in {folder} is whole, `hf upload {name} {folder} .{privately}` sends it"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        causes = {
            401: "the hub does not know this token: `hf auth login` with another (or set HF_TOKEN)",
            403: "this account or token may not write there: name an owner that it may write for, or give the token "
            "the right to write",
        }
        cause = causes.get(status, f"the hub did not take it ({str(error).splitlines()[0][:300]})")
        raise ValueError(f"--push {name}: {cause}; {again}") from error
    except ValueError as error:  # what the hub says of the head of the card
        wrong = " ".join(str(error).split())[:300]
        raise ValueError(f"--push {name}: {wrong}; licences are `uae export --license ID`, as on the hub") from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # the last of hf_xet
        raise ValueError(
            f"--push {name}: the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: "
            f"{str(error)[:200]}): {again} once there is a connection"
        ) from error
