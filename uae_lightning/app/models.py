"""The weights there are to choose from, loaded when somebody first needs them and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import nn

from uae_lightning.app.run_folders import RunFolders, finished
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.caption_likelihood import CaptionLikelihood
from uae_lightning.run import folder as run_folder
from uae_lightning.run.loading import build_autoencoder, load_judges, load_reward, read_autoencoder
from uae_lightning.run.spec import read_yaml
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError

Module = TypeVar("Module", bound=nn.Module)
START = "the weights it starts from"
READ_BACK = "read back"  # the verifier that every run has: its own encoder
KEPT_BYTES = 4 << 30  # of weights, beside those in use


@dataclass(frozen=True)
class Moment:
    """The auto-encoder at one time of a run.

    Args:
        config: YAML of a stage, which says what the parts are.
        weights: part -> folder, in place of those that the YAML names.
    """

    title: str
    config: Path
    weights: dict[str, Path] = field(default_factory=dict)

    def key(self) -> Hashable:
        """Changes with the weights, which a run under way writes anew."""
        folders = sorted((part, path, path.stat().st_mtime_ns) for part, path in self.weights.items())
        return self.config, self.config.stat().st_mtime_ns, tuple(folders)


class Models:
    """All that the tabs load.

    Args:
        runs: whose weights can be chosen.
        start: YAML of a stage whose weights no run has trained; None where there is none.
        device: they are computed on.
        verifier: YAML of a reward that ranks drawings of a prompt, beside the run's own encoder.
        kept_bytes: of weights that stay loaded; the last used stays in any case.
    """

    def __init__(
        self,
        runs: RunFolders,
        start: Path | None,
        device: str = "cpu",
        verifier: Path | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.runs, self.start, self.device, self.verifier = runs, start, device, verifier
        self.kept_bytes = kept_bytes
        self.kept: OrderedDict[Hashable, list[nn.Module]] = OrderedDict()
        self.loading = threading.Lock()

    def names(self) -> list[str]:
        """Of all that can be drawn with: runs with a stage that is done, and the start."""
        trained = [name for name, run in self.runs.find().items() if finished(run)]
        return [*trained, *([START] if self.start else [])]

    def moments(self, name: str) -> list[Moment]:
        """The start of a run and the end of each of its stages."""
        if name == START and self.start:
            return [Moment("as it is shipped", self.start)]
        done = finished(self.runs.named(name))
        if not done:
            raise UsageError(f"no stage of {name} is done yet: wait for the first, or choose another run")
        ends = [
            Moment(f"after {stage.name}", stage / "config.yaml", run_folder.latest_weights(done[: number + 1]))
            for number, stage in enumerate(done)
        ]
        return [Moment("at the start", done[0] / "config.yaml"), *ends]

    def latest(self, name: str) -> AutoEncoder:
        return self.at(self.moments(name)[-1])

    def at(self, moment: Moment) -> AutoEncoder:
        paths = {f"{part}.path": path for part, path in moment.weights.items()}
        return self._kept(("model", moment.key()), lambda: [build_autoencoder(moment.config, paths)])[0]

    def sampling(self, name: str) -> Sampling:
        """Steps and guidance that its YAML names; nothing is loaded."""
        return Sampling(**(read_autoencoder(self.moments(name)[-1].config, {})["init_args"].get("sampling") or {}))

    def judges(self, name: str) -> list[Reward]:
        """What the run is rewarded for, and what it is not, as held-out pictures are judged."""
        last = self.moments(name)[-1]
        return self._kept(("judges", last.config, last.config.stat().st_mtime_ns), lambda: load_judges(last.config))

    def verifiers(self) -> list[str]:
        """Names, that of the YAML's class first."""
        return [*([class_name(self.verifier)] if self.verifier else []), READ_BACK]

    def ranking(self, name: str, model: AutoEncoder) -> Reward:
        """The verifier of that name, which judges by the prompt alone."""
        if name == READ_BACK:
            return CaptionLikelihood(model.reader)
        if self.verifier is None or name != class_name(self.verifier):
            raise UsageError(f"there is no verifier {name!r}: choose one of {', '.join(self.verifiers())}")
        yaml = self.verifier
        verifier = self._kept(("verifier", yaml, yaml.stat().st_mtime_ns), lambda: [load_reward(yaml, "--verifier")])[0]
        if verifier.needs_originals:
            raise UsageError(
                f"{verifier.title()} compares with an original, which a prompt does not have: choose another"
            )
        return verifier

    def _kept(self, key: Hashable, load: Callable[[], list[Module]]) -> list[Module]:
        """What `load` gave for that key, once for all users; the longest unused goes where there is no room."""
        with self.loading:
            if key not in self.kept:
                self.kept[key] = [module.to(self.device).eval() for module in load()]
            self.kept.move_to_end(key)
            while len(self.kept) > 1 and sum(map(size, self.kept.values())) > self.kept_bytes:
                self.kept.popitem(last=False)
            return self.kept[key]


def class_name(yaml: Path) -> str:
    """Of the reward that a YAML describes."""
    content = read_yaml(yaml, "a reward")
    if not isinstance(content, dict) or not isinstance(path := content.get("class_path"), str):
        raise UsageError(f"--verifier {yaml} is not the YAML of a reward: it has no class_path")
    return path.rpartition(".")[2]


def size(modules: list[nn.Module]) -> int:
    """Bytes of weights and buffers."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
