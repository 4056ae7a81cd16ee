"""`uae app`: the page in the browser."""

from __future__ import annotations

import os
from pathlib import Path

from uae_lightning.commands.init import shipped
from uae_lightning.ranges import Natural
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
One page in the browser: reconstruct a picture, draw from a prompt, compare the stages of a run, change words of a
caption, and watch runs while they train.

    uae app                            with the shipped weights, and the runs below runs/
    uae app runs/demo                  with one run
    uae app runs other/runs --port 8000

It listens on this machine alone. For another address set a password, of the user `uae`, in UAE_APP_PASSWORD; it goes
over the network unencrypted: where that is not yours, forward the port instead (ssh -L 7860:localhost:7860 MACHINE).
Pictures that are dropped are not written down, and no file can be read through the page but the reports of runs,
without commands and settings. /?run=NAME opens the page on a run.
"""
SCENES = "scenes/decoder_rl.yaml"  # of the shipped YAMLs: the weights that runs start from
VERIFIER = "scenes/verifier.yaml"


def main(args: list[str]) -> None:
    options = parse(args)
    page, serving = needed()
    hosts = serving.hosts_of(options.host, password := os.environ.get("UAE_APP_PASSWORD") or None)
    tabs = tabs_of(options)
    with serving.listening(options.host, options.port) as place:
        app = page.application(tabs, hosts, password)
        print(f"{serving.url_of(place)}   (Ctrl-C ends it)", flush=True)
        serving.server(app).run(sockets=[place])


def parse(args: list[str]):
    parser = Parser(prog="uae app", description=DESCRIPTION)
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="RUN_FOLDER",
        help="of a run, or with runs below it; default: runs, where it exists",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="YAML", help="of a stage with weights to draw with as they are; "
                        "default: the shipped scenes")  # fmt: skip
    parser.add_argument("--verifier", type=Path, metavar="YAML", help="of a reward that ranks drawings of a prompt, as "
                        "in `uae generate`; default: the shipped one, of scenes")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--port", type=Natural, metavar="N", help="default: the first free one from 7860 on")
    options = parser.parse(args)
    if not options.folders and Path("runs").is_dir():
        options.folders = [Path("runs")]
    for option, file in (("--config", options.config), ("--verifier", options.verifier)):
        if file is not None and not file.is_file():
            raise UsageError(f"{option} {file} does not exist: name a YAML")
    return options


def needed():
    """The page and its server, which need the extra `app`."""
    try:
        from uae_lightning.app import page, serving
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UsageError(
            f"uae app needs {error.name}: install the extra, `pip install 'uae-lightning[app]'`"
        ) from error
    return page, serving


def tabs_of(options):
    """What the page shows; no model is loaded before somebody asks for it."""
    import torch
    from PIL import Image

    from uae_lightning.app.models import Models
    from uae_lightning.app.run_folders import RunFolders
    from uae_lightning.app.tabs import Tabs
    from uae_lightning.scenes.scene import render, sample_scene

    device = "cuda" if torch.cuda.is_available() else "cpu"
    conf = shipped()
    models = Models(
        RunFolders(options.folders), options.config or conf / SCENES, device, options.verifier or conf / VERIFIER
    )

    def scene(number: int) -> Image.Image:
        return Image.fromarray(render(sample_scene("test", 0, number)))

    return Tabs(models, scene)
