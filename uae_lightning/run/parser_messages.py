"""jsonargparse's nested messages in a line of their own."""

from __future__ import annotations

import inspect
import re
import sys

from uae_lightning import ranges
from uae_lightning.run.moved import of_version_1
from uae_lightning.usage import closest


def explain(message: str, options: list[str]) -> str:
    """What is wrong in jsonargparse's nested message, with the closest name that would have been right.

    Args:
        options: of the command line, and keys at the top of the YAML.
    """
    if text := ranges.explained(message) or of_version_1(message):
        return text
    owners = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
        owner = owners[-1] if owners else "it"
        return f"{owner} has no option {unknown[1]!r}{closest(unknown[1], parameters(owner))}"
    if unknown := re.search(r"unrecognized arguments: (--)?([\w.-]+)", message, re.IGNORECASE):
        return f"unknown option {unknown[1] or ''}{unknown[2]}{closest(unknown[2], options)}"
    if unknown := re.search(r"does not accept option '([\w.]+)'", message):
        return f"unknown key {unknown[1]} in the YAML{closest(unknown[1], options)}"
    key = ".init_args.".join(re.findall(r'Parser key "([\w.]+)"', message))  # from the outer to the inner
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return f"{key}: {denied[1]} is never called from a YAML: name a class of the kind that belongs there"
    noise = (
        r"Does not validate against any of|Subtypes:|Errors:|<class 'NoneType'>|Given value|Parser key|"
        r"Problem with given class_path|Subclass types expect|^ *- a (class path \(str\)|dict with)"
    )
    lines = [line.strip(" -")[:200] for line in message.splitlines() if line.strip() and not re.search(noise, line)]
    return f"{key}: ".removeprefix(": ") + re.sub(r"(Got value: .{80}).+", r"\1...", " ".join(lines))


def parameters(class_path: str) -> list[str]:
    """Names of the init args of a class, and of its base classes as far as they are passed on by **kwargs."""
    module, _, name = class_path.rpartition(".")
    owner, found = getattr(sys.modules.get(module), name, None), set[str]()
    for base in inspect.getmro(owner)[:-1] if inspect.isclass(owner) else ():
        accepted = inspect.signature(base.__init__).parameters
        found |= accepted.keys()
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in accepted.values()):
            break
    return sorted(found - {"self"})
