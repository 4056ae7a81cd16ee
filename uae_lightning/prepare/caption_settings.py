"""With what a set of captions was begun, which is what it must be gone on with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from uae_lightning.data.sources import Source
from uae_lightning.files import write_json
from uae_lightning.prepare.caption_reading import fingerprint
from uae_lightning.prepare.caption_writer import SETTINGS, record_path
from uae_lightning.usage import UsageError

FREE = {"to", "batch_size", "max_skipped"}  # may change when a folder is gone on with


def settings(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What decides what is in the set; JSON keeps it as it is."""
    found = {name: value for name, value in vars(options).items() if name not in FREE}
    if Path(options.source).exists():
        found["source"] = str(Path(options.source).resolve())
    if options.duplicate_judge:
        found["duplicate_judge"] = str(options.duplicate_judge.resolve())
    found |= {"part": str(options.part), "pictures": len(source), "names": fingerprint(source)}
    return found


def begin_or_go_on(folder: Path, wanted: dict[str, Any]) -> None:
    """Raises UsageError where `folder` holds shards that were made with other settings."""
    if not (folder / SETTINGS).exists() or not record_path(folder, 0).exists():  # nothing yet, or a first try failed
        write_json(folder / SETTINGS, wanted)
        return
    try:
        earlier = dict(json.loads((folder / SETTINGS).read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{folder / SETTINGS} is damaged ({error}): put it back, or name another --to") from error
    differing = [name for name in wanted if earlier.get(name) != wanted[name]]
    if not differing:
        return
    if {"pictures", "names"}.issuperset(differing):
        raise UsageError(
            f"{wanted['source']} has {wanted['pictures']} pictures (or shards), {earlier['pictures']} or others when "
            f"{folder} was begun: caption what is new from a folder of its own, or name another --to"
        )
    changes = "; ".join(
        f"--{'from' if name == 'source' else name.replace('_', '-')} was {json.dumps(earlier.get(name))}, "
        f"is {json.dumps(wanted[name])}"
        for name in differing
        if name not in ("pictures", "names")
    )
    raise UsageError(f"{folder} was begun with other settings ({changes}): go on with those, or name another --to")
