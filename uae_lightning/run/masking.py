"""Secrets stay out of what is written down and passed on: configurations, commands, reports, exports.

What a YAML takes from the environment, `${oc.env:HF_TOKEN}`, is saved as that interpolation, not as what it stood for.
So is the value of every variable whose name says that it is a secret, wherever it turns up; and what is given by
hand to an option with such a name is saved as asterisks.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)$", re.IGNORECASE)
OPTION = re.compile(
    r"(^|[._-])(password|passwd|secret|credentials?|(api|access|private|secret)_?key)$"
    r"|(^|[.-])((hf|hub|auth|use_auth|access|api)_)?token$",
    re.IGNORECASE,
)
USER_IN_URL = re.compile(r"://[^/\s@]+@")
MASK = "***"
LONG = 8  # characters from which on a value is searched for inside of longer text
read: dict[str, str] = {}  # variables that interpolations have asked for in this process


def _env(key: str, *default: Any) -> str | None:
    if key in os.environ:
        read[key] = os.environ[key]
    return oc.env(key, *default)


OmegaConf.register_resolver("oc.env", _env, replace=True, annotation_validation="off")


def masked(value: Any) -> Any:
    """A copy of text, a configuration or plain data that holds no secret; other values come back as they are."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Namespace):
        copy = value.clone()
        vars(copy).update(masked(vars(value)))
        return copy
    if isinstance(value, dict):
        return {key: MASK if given_by_hand(key, of) else masked(of) for key, of in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value


def masked_text(text: str) -> str:
    secrets = {name: of for name, of in os.environ.items() if VARIABLE.search(name) and len(of) >= LONG} | read
    for name, of in sorted(secrets.items(), key=lambda pair: -len(pair[1])):  # the longer ones first: they may overlap
        if of and (text == of or len(of) >= LONG):
            text = text.replace(of, f"${{oc.env:{name}}}")
    return USER_IN_URL.sub(f"://{MASK}@", text)


def given_by_hand(key: Any, value: Any) -> bool:
    return bool(isinstance(value, str) and value and OPTION.search(str(key)) and "${" not in masked_text(value))


def masked_command(words: Sequence[str]) -> str:
    """As one would type it; an interpolation in place of a secret does what the secret did."""
    kept: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and given_by_hand(name.lstrip("-"), value):
            word = f"{name}={MASK}"
        elif kept and kept[-1].startswith("--") and "=" not in kept[-1] and given_by_hand(kept[-1].lstrip("-"), word):
            word = MASK
        kept.append(masked_text(word))
    return shlex.join(kept)
