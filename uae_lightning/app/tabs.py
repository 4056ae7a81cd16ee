"""What happens when somebody presses a button: inputs as a browser sends them -> HTML to show. No Gradio here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from PIL import Image

from uae_lightning.app import html, prompts, round_trip, wording
from uae_lightning.app.drawing import Settings
from uae_lightning.app.models import Models
from uae_lightning.app.pictures import data_url, picture_in
from uae_lightning.app.run_folders import Signature, report_of, signature
from uae_lightning.app.watching import RunPages, state_of
from uae_lightning.report.page import for_others
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError

LOADING = "loading the weights ..."
Scenes = Callable[[int], Image.Image]  # number -> a held-out scene


@dataclass
class Tabs:
    """One for all users; nothing in it is one user's.

    Args:
        models: what they draw with.
        scenes: draws a picture for who has none; None where there are no scenes.
    """

    models: Models
    scenes: Scenes | None = None
    pages: RunPages = field(default_factory=RunPages)

    def sampling(self, run: str) -> Sampling:
        """Steps and guidance that the run was trained with."""
        return self.models.sampling(run)

    def scene(self, number: float) -> str:
        """A held-out scene, as the picture that is dropped."""
        if self.scenes is None:
            raise UsageError("there are no scenes here: drop a picture")
        return data_url(self.scenes(settings(None, None, number).seed))

    def reconstruct(
        self, run: str, picture: str | None, steps: float, guidance: float, seed: float
    ) -> Iterator[tuple[str, str | None]]:
        """The round trip as HTML, and its caption once it is done."""
        how = settings(steps, guidance, seed)
        yield html.waiting(LOADING), None
        model = self.models.latest(run)
        dropped = picture_in(picture, model.image_size)
        judges, note = round_trip.judges_of(self.models, run)
        for now in round_trip.reconstruct(model, judges, dropped, how):
            yield html.round_trip(replace(now, note=note)), now.caption if now.done else None

    def generate(
        self,
        run: str,
        prompt: str,
        steps: float,
        guidance: float,
        seed: float,
        candidates: float,
        verifier: str,
        rewrite: bool,
    ) -> Iterator[str]:
        how = settings(steps, guidance, seed)
        yield html.waiting(LOADING)
        model = self.models.latest(run)
        ranking = self.models.ranking(verifier, model)
        for now in prompts.generate(model, ranking, prompt, how, candidates=whole(candidates), rewrite=rewrite):
            yield html.generated(now)

    def compare(self, run: str, picture: str | None, steps: float, guidance: float, seed: float) -> Iterator[str]:
        how, of = settings(steps, guidance, seed), len(self.models.moments(run))
        yield html.waiting(LOADING)
        dropped = picture_in(picture, self.models.latest(run).image_size)
        for found in round_trip.along_the_run(self.models, run, dropped, how):
            yield html.along(found, of)

    def redraw(self, run: str, before: str, after: str, steps: float, guidance: float, seed: float) -> str:
        """The caption as it was and as it is edited; where there was none, the edited one alone counts."""
        how, model = settings(steps, guidance, seed), self.models.latest(run)
        return html.redrawn(wording.redraw(model, before or after, after, how))

    def listen(
        self, run: str, text: str, steps: float, guidance: float, seed: float, unit: str, way: str
    ) -> Iterator[str]:
        how = settings(steps, guidance, seed)
        if way not in wording.WAYS:
            raise UsageError(f"choose one of {', '.join(wording.WAYS)}")
        yield html.waiting(LOADING)
        model = self.models.latest(run)
        listen = wording.listen_by_gradient if way == wording.GRADIENT else wording.listen
        for now in listen(model, text, how, unit):
            yield html.listening(now)

    def table(self) -> str:
        return html.runs_table([state_of(name, run) for name, run in self.models.runs.find().items()])

    def run_page(self, run: str | None) -> str:
        if not run:
            return ""
        folder = self.models.runs.named(run)
        link = html.report_link(run) if report_of(folder) else ""
        return link + html.framed(self.pages.page(folder))

    def report(self, run: str) -> str:
        """The report of a run, as it lies in its folder, but for commands, settings and paths.

        Raises:
            UsageError: there is none yet.
            ValueError: an older version has written it.
        """
        if (path := report_of(self.models.runs.named(run))) is None:
            raise UsageError("this run has no report yet: it is written when a stage ends")
        return for_others(path.read_text("utf-8"))

    def news(self) -> Signature:
        """Changes whenever a run has something new to tell, or there is a new one."""
        return tuple(line for run in self.models.runs.find().values() for line in signature(run))


def settings(steps: float | None, guidance: float | None, seed: float | None) -> Settings:
    """Raises UsageError where a number is out of bounds, or a count is none."""
    return Settings(None if steps is None else whole(steps), guidance, whole(seed or 0))


def whole(number: float) -> int:
    if int(number) != number:
        raise UsageError(f"{number} must be a whole number")
    return int(number)
