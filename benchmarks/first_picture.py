"""Seconds from a clone to the first picture that comes back in the browser, by what the README says and nothing else.

    python -m benchmarks.first_picture [--of REPOSITORY] [--seconds 3000]        wants git, make, Chromium and selenium

Clones into a new folder, `make .venv`, `uae app`, opens the page in Chromium, drops a picture, presses Reconstruct and
waits for the end of the drawing. Prints the seconds of each part as it ends; packages come from pip, out of its cache
where it has one. What it starts has the priority that it has itself. The folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,1000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", default=str(ROOT), metavar="REPOSITORY", help="what is cloned (default: this one)")
    parser.add_argument("--seconds", type=float, default=3000, help="after which it gives up (default: %(default)s)")
    options = parser.parse_args()
    began, own = time.monotonic(), {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print(f"load of the machine: {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "clone"

        def left() -> float:
            return options.seconds - (time.monotonic() - began)

        with part("git clone"):
            subprocess.run(["git", "clone", "--quiet", options.of, place], check=True, timeout=left())
        with part("make .venv"):
            subprocess.run(["make", ".venv"], cwd=place, env=own, check=True, stdout=subprocess.DEVNULL, timeout=left())
        with part("uae app, until it prints its address"):
            app = subprocess.Popen([".venv/bin/uae", "app"], cwd=place, env=own, stdout=subprocess.PIPE, text=True)
            url = re.search(r"http://\S+", app.stdout.readline())
        try:
            assert url is not None, "`uae app` ended without an address"
            reconstruct(url[0], photo(Path(folder)), left)
        finally:
            app.terminate()
            app.wait()
    print(f"{time.monotonic() - began:6.0f} s  from the clone to the picture", flush=True)


def reconstruct(url: str, picture: Path, left) -> None:
    with part("the page in the browser"):
        chrome = webdriver.ChromeOptions()
        for flag in FLAGS:
            chrome.add_argument(f"--{flag}")
        chrome.binary_location = found("chromium")
        driver = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(found("chromedriver")))
        driver.set_page_load_timeout(left())
        driver.get(url)
        drop = waited(driver, "#picture-reconstruct input[type=file]", left())
    try:
        with part("the picture's way: loading, caption, drawing"):
            drop.send_keys(str(picture))
            waited(driver, "#picture-reconstruct img", left())
            waited(driver, "#reconstruct", left()).click()
            waited(driver, "#reconstructed .uae[data-done=true]", left())
            assert driver.find_elements(By.CSS_SELECTOR, "#reconstructed img")
    finally:
        driver.quit()


def found(program: str) -> str:
    path = shutil.which(program)
    assert path, f"there is no {program}: apt-get install chromium chromium-driver"
    return path


def waited(driver, css: str, seconds: float):
    """The element, once it is there."""
    return WebDriverWait(driver, seconds).until(lambda page: page.find_elements(By.CSS_SELECTOR, css))[0]


def photo(folder: Path) -> Path:
    """A picture of a visitor's own, as large as a phone's preview."""
    Image.radial_gradient("L").convert("RGB").resize((1200, 900)).save(folder / "photo.jpg")
    return folder / "photo.jpg"


@contextmanager
def part(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:6.0f} s  {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
