"""What a YAML may call: reading the run folder of a stranger must not run what the stranger wrote into it.

jsonargparse imports and calls what `class_path` names. Where a class is the type, only its subclasses pass; but where a
callable is the type (`optimizer`), a function passes too, whatever it does, and where anything is allowed, any class
does. Here a `class_path` names a class, modules that start programs or open files are out of bounds, and a value of a
parameter that takes anything stays plain data.
"""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch.cli  # noqa: F401  it has settings of its own, which those below come after
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._util import import_object

from uae_lightning.usage import UsageError

set_parsing_settings(
    instantiate_subclass_spec_in_any=False,
    import_path_denylist=[],  # none on top of jsonargparse's own, which is enforced once one is given
    config_read_mode_fsspec_enabled=False,  # Lightning turns it on: a value such as "https://..." would be fetched
)


def check_class_paths(config: Any, where: str = "") -> None:
    """Goes through a parsed configuration, before anything of it is built.

    Raises:
        UsageError: some `class_path` names a function, or something else that is no class; or a text no path can be.
    """
    values = vars(config) if isinstance(config, Namespace) else config
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if key == "class_path" and isinstance(value, str) and callable(found := imported(value)):
            if not inspect.isclass(found):
                raise UsageError(f"{where} calls {value}, which is no class: name a class, no function is called")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{where}.{key} is {value!r}: no path, name or text can hold a null byte")
        check_class_paths(value, f"{where}.{key}".lstrip("."))


def imported(path: str) -> Any:
    """What it names; None where that is out of bounds or nothing, and so stays text."""
    try:
        return import_object(path)
    except (ImportError, AttributeError, ValueError):
        return None
