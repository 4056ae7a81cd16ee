"""The page: which inputs each tab has, and what happens to what they hold. All that Gradio is asked for is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from uae_lightning.app.drawing import MOST_CANDIDATES, MOST_GUIDANCE, MOST_STEPS
from uae_lightning.app.errors import in_words
from uae_lightning.app.guard import Application, Guard
from uae_lightning.app.pictures import MOST_BYTES
from uae_lightning.app.tabs import Tabs
from uae_lightning.app.wording import LEFT_OUT, UNITS, WAYS
from uae_lightning.usage import UsageError

STYLE = Path(__file__).with_name("app.css").read_text("utf-8")
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the visitor's own
WAITING = 32  # requests in the queue; of more the visitor is told
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # what loads and draws: one after the other
LOOK = {"concurrency_id": "look", "concurrency_limit": 4, "show_progress": "hidden"}  # what reads a few files
SECONDS = 3  # between two looks for news of the runs
RUNS = "runs"  # the tab
OF_A_REPORT = {"content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"}

DROP = """<label class="uae-drop">
${value && value.startsWith('data:image/') ? '<img alt="the picture" src="' + value + '">' : ''}
<span>${note || (value ? (value.startsWith('data:image/') ? 'another picture' : 'not a picture') : prompt)}</span>
<input type="file" accept="image/*" aria-label="a picture"></label>"""
TAKE = """
const take = file => {
  if (!file) return;
  if (file.size > props.most) { props.value = ''; props.note = 'too large a file'; return; }
  const reader = new FileReader();
  reader.onload = () => { props.note = ''; props.value = reader.result; };
  reader.readAsDataURL(file);
};
element.addEventListener('change', event => { event.stopPropagation(); take(event.target.files[0]); });
element.addEventListener('dragover', event => event.preventDefault());
element.addEventListener('drop', event => { event.preventDefault(); take(event.dataTransfer.files[0]); });
"""


@dataclass
class Inputs:
    """How a tab draws."""

    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number

    def all(self) -> list[Any]:
        return [self.steps, self.guidance, self.seed]


def application(tabs: Tabs, hosts: tuple[str, ...] | None, password: str | None) -> Application:
    """The page as an ASGI application. No file of this machine can be read through it but
    the reports of runs, without what they say of the machine, and none is written.

    Args:
        hosts: under which it may be called; None is any.
        password: of the user `uae`; None asks for none.
    """
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    inner.get("/report")(report_answer(tabs))  # before the page, which takes all addresses
    blocks = build(tabs)
    gr.mount_gradio_app(
        inner, blocks, path="", show_error=False, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False, run_history=False, footer_links=["api"], allowed_paths=[],
        max_file_size=1, theme=gr.themes.Default(**FONTS), css=STYLE,
    )  # fmt: skip
    return Guard(inner, hosts, password)


def report_answer(tabs: Tabs) -> Callable[[str], Response]:
    def report(run: str = "") -> Response:
        try:
            return HTMLResponse(tabs.report(run), headers=OF_A_REPORT)
        except Exception as error:
            return PlainTextResponse(in_words(error) + "\n", 404)

    return report


def build(tabs: Tabs) -> gr.Blocks:
    with gr.Blocks(title="uae", analytics_enabled=False) as blocks:
        gr.Markdown("## picture → caption → picture")
        names = tabs.models.names()
        run = gr.Dropdown(
            names, value=names[0] if names else None, label="Drawn with", interactive=True, elem_id="drawn-with"
        )
        with gr.Tabs() as pages:
            with gr.Tab("Reconstruct"):
                first, caption = reconstruct_tab(tabs, run)
            with gr.Tab("Generate"):
                second = generate_tab(tabs, run)
            with gr.Tab("Compare"):
                third = compare_tab(tabs, run)
            with gr.Tab("Words"):
                fourth = words_tab(tabs, run, caption)
            with gr.Tab("Runs", id=RUNS):
                runs_tab(blocks, tabs, run, pages)
        sliders = [one for inputs in (first, second, third, fourth) for one in (inputs.steps, inputs.guidance)]
        for event in (blocks.load, run.change):
            event(trained_with(tabs, len(sliders) // 2), run, sliders, api_name=False, **LOOK)
    blocks.queue(max_size=WAITING, api_open=False, default_concurrency_limit=1)
    return blocks


# ------------------------------------------------------------------------------------------------ the tabs


def reconstruct_tab(tabs: Tabs, run: gr.Dropdown) -> tuple[Inputs, gr.State]:
    """Its caption goes on to the words tab."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture, inputs = picture_input(tabs, "reconstruct"), drawing_inputs()
            go, stop = buttons("Reconstruct", "reconstruct")
        with gr.Column(scale=2, min_width=280):
            shown, caption = gr.HTML(js_on_load=None, elem_id="reconstructed"), gr.State("")
    event = go.click(
        told(lambda *given: ((html, skipped(said)) for html, said in tabs.reconstruct(*given))),
        [run, picture, *inputs.all()], [shown, caption], api_name="reconstruct", show_progress="minimal", **MODEL,
    )  # fmt: skip
    stop.click(None, cancels=event, api_name=False)
    return inputs, caption


def generate_tab(tabs: Tabs, run: gr.Dropdown) -> Inputs:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=2, elem_id="prompt", placeholder="a large red cat at the center and a blue bus"
            )
            candidates = gr.Slider(1, MOST_CANDIDATES, value=4, step=1, label="Candidates")
            names = tabs.models.verifiers()
            verifier = gr.Dropdown(names, value=names[0], label="Ranked by")
            rewrite = gr.Checkbox(label="The encoder rewrites the prompt first (a run that has learned it)")
            inputs = drawing_inputs()
            go, stop = buttons("Generate", "generate")
        with gr.Column(scale=2, min_width=280):
            shown = gr.HTML(js_on_load=None, elem_id="generated")
    event = gr.on(
        [go.click, prompt.submit], told(tabs.generate), [run, prompt, *inputs.all(), candidates, verifier, rewrite],
        shown, api_name="generate", show_progress="minimal", **MODEL,
    )  # fmt: skip
    stop.click(None, cancels=event, api_name=False)
    return inputs


def compare_tab(tabs: Tabs, run: gr.Dropdown) -> Inputs:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture, inputs = picture_input(tabs, "compare"), drawing_inputs()
            go, stop = buttons("Compare the stages", "compare")
        with gr.Column(scale=2, min_width=280):
            shown = gr.HTML(js_on_load=None, elem_id="compared")
    event = go.click(
        told(tabs.compare), [run, picture, *inputs.all()], shown, api_name="compare", show_progress="minimal", **MODEL
    )
    stop.click(None, cancels=event, api_name=False)
    return inputs


def words_tab(tabs: Tabs, run: gr.Dropdown, caption: gr.State) -> Inputs:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            before = gr.Textbox(label="Caption (of the last reconstruction, or your own)", lines=4)
            after = gr.Textbox(label="Edited", lines=4, elem_id="edited")
            inputs = drawing_inputs()
            change = gr.Button("Redraw", variant="primary", elem_id="redraw")
            way = gr.Radio(list(WAYS), value=LEFT_OUT, label="What counts is", elem_id="way")
            unit = gr.Radio(list(UNITS), value="words", label="of")
            go, stop = buttons("What does the decoder listen to?", "listen")
        with gr.Column(scale=2, min_width=280):
            redrawn, heard = gr.HTML(js_on_load=None, elem_id="redrawn"), gr.HTML(js_on_load=None, elem_id="heard")
    caption.change(lambda text: (text, text), caption, [before, after], api_name=False, **LOOK)
    change.click(
        told_once(tabs.redraw), [run, before, after, *inputs.all()], redrawn, api_name="redraw",
        show_progress="minimal", **MODEL,
    )  # fmt: skip
    event = go.click(
        told(tabs.listen), [run, after, *inputs.all(), unit, way], heard, api_name="listen", show_progress="minimal",
        **MODEL,
    )  # fmt: skip
    stop.click(None, cancels=event, api_name=False)
    return inputs


def runs_tab(blocks: gr.Blocks, tabs: Tabs, run: gr.Dropdown, pages: gr.Tabs) -> None:
    """The table and the chosen run, read again when there is news; `?run=NAME` in the address chooses one."""
    table, seen = gr.HTML(js_on_load=None, elem_id="runs"), gr.State(())
    found = list(tabs.models.runs.find())
    chosen = gr.Dropdown(found, value=None, label="Look at", interactive=True, elem_id="look-at")
    page = gr.HTML(js_on_load=None, elem_id="run")

    def look(name: str | None, known: Any) -> tuple[Any, ...]:
        if (news := tabs.news()) == tuple(map(tuple, known)) and news:
            return (gr.skip(),) * 5
        found = list(tabs.models.runs.find())
        name = name if name in found else next(iter(found), None)
        choices, drawn_with = gr.Dropdown(choices=found, value=name), gr.Dropdown(choices=tabs.models.names())
        return tabs.table(), choices, tabs.run_page(name), news, drawn_with

    def arrive(request: gr.Request) -> tuple[Any, ...]:
        asked, name = request.query_params.get("run"), None
        try:
            name = tabs.models.runs.called(asked) if asked else None
        except UsageError as error:
            gr.Warning(in_words(error))
        table, choices, page, news, drawn_with = told_once(look)(name, ())
        if name in (names := tabs.models.names()):
            drawn_with = gr.Dropdown(choices=names, value=name)
        return table, choices, page, news, drawn_with, gr.Tabs(selected=RUNS) if asked else gr.skip()

    outputs = [table, chosen, page, seen, run]
    blocks.load(arrive, None, [*outputs, pages], api_name=False, **LOOK)
    gr.Timer(SECONDS).tick(told_once(look), [chosen, seen], outputs, api_name=False, **LOOK)
    chosen.input(told_once(tabs.run_page), chosen, page, api_name="run_page", **LOOK)
    gr.Button("Runs", visible=False).click(told_once(tabs.table), None, table, api_name="runs", **LOOK)


# ------------------------------------------------------------------------------------------------ their parts


def picture_input(tabs: Tabs, verb: str) -> gr.HTML:
    """A picture that is dropped, chosen or drawn; it stays in the browser, and comes with each request."""
    ask = "Drop a picture here, or tap to choose one"
    picture = gr.HTML(
        "", html_template=DROP, js_on_load=TAKE, note="", most=MOST_BYTES, prompt=ask, elem_id=f"picture-{verb}"
    )
    if tabs.scenes is not None:
        with gr.Row():
            number = gr.Number(0, label="Scene", precision=0, minimum=0, min_width=80)
            gr.Button("Draw a scene", min_width=120, elem_id=f"scene-{verb}").click(
                told_once(tabs.scene), number, picture, api_name=False, **LOOK
            ).then(lambda n: (n or 0) + 1, number, number, api_name=False, **LOOK)
    return picture


def drawing_inputs() -> Inputs:
    with gr.Accordion("How it is drawn", open=False):
        steps = gr.Slider(1, MOST_STEPS, value=10, step=1, label="Steps")
        guidance = gr.Slider(0, MOST_GUIDANCE, value=1, step=0.1, label="Guidance (1 is none)")
        return Inputs(steps, guidance, gr.Number(0, label="Seed", precision=0, minimum=0))


def buttons(name: str, verb: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        go = gr.Button(name, variant="primary", scale=3, elem_id=verb)
        return go, gr.Button("Stop", scale=1, min_width=80, elem_id=f"stop-{verb}")


def trained_with(tabs: Tabs, count: int) -> Callable[[str | None], list[Any]]:
    """Sets the sliders of so many tabs to what a run was trained with."""

    def values(name: str | None) -> list[Any]:
        if not name:
            return [gr.skip()] * 2 * count
        sampling = tabs.sampling(name)
        return [sampling.steps, sampling.guidance] * count

    return told_once(values)


def skipped(value: Any) -> Any:
    """None leaves an output as it is."""
    return gr.skip() if value is None else value


def told(steps: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Errors in words."""

    def told_steps(*given: Any) -> Iterator[Any]:
        try:
            yield from steps(*given)
        except Exception as error:
            raise gr.Error(in_words(error), print_exception=False) from None

    return told_steps


def told_once(function: Callable[..., Any]) -> Callable[..., Any]:
    def told_function(*given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:
            raise gr.Error(in_words(error), print_exception=False) from None

    return told_function
