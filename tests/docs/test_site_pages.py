"""The pages of the site: each has a place in its table of contents, and options are those of the code."""

from __future__ import annotations

import importlib.util
import re
import tomllib

import pytest
from documented import ROOT

from uae_lightning.commands import COMMANDS
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.policy import PolicyStage

SPEC = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
site_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site_pages)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("site") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        site_pages.main(place)
    return place


def test_every_page_is_in_the_table_of_contents(site):
    # red with a page that nothing leads to, or an entry without a page, which Zensical does not tell
    def files(entries):
        for value in (value for entry in entries for value in entry.values()):
            yield from files(value) if isinstance(value, list) else [value]

    listed = [*files(tomllib.loads((site / "zensical.toml").read_text())["project"]["nav"])]
    assert sorted(listed) == sorted(file.name for file in (site / "pages").glob("*.md"))


def test_commands_and_their_options_are_read_from_the_parsers(site):
    # red with a command left out, or a help that is not all there
    text = (site / "pages" / "commands.md").read_text()
    assert re.findall(r"^## uae (\S+)$", text, re.MULTILINE) == [*COMMANDS]
    for option in ("--overwrite", "--trainer.max_steps", "--candidates", "--duplicate-bits", "--tflops"):
        assert f"  {option} " in text, option


def test_parts_have_their_own_options_and_those_of_their_parents(site, monkeypatch):
    # red without options of a parent, or with classes that no YAML can name
    text = (site / "pages" / "parts.md").read_text()
    listed = re.findall(r"^`([\w.]+)`$", text, re.MULTILINE)
    assert len(listed) == len({*listed}) > 60
    assert {"callbacks.RewardCallback", "uae_lightning.rewards.http_reward.HttpReward"} <= {*listed}
    assert "uae_lightning.engines.vllm.VllmEngine" in listed
    assert site_pages.path_of(DecoderRL) in listed and site_pages.path_of(PolicyStage) not in listed
    monkeypatch.setenv("COLUMNS", str(site_pages.WIDTH))
    described = site_pages.options_of(DecoderRL)
    assert described in text and all(f"\n  {name}" in described for name in ("sde", "kl_beta", "learning_rates"))
    assert "known subclasses" not in text and ".help" not in text


def test_classes_that_yamls_name_are_listed(site):
    # red with a folder left out of PARTS
    text = (site / "pages" / "parts.md").read_text()
    named = {
        name
        for file in (ROOT / "conf").rglob("*.yaml")
        for name in re.findall(r"class_path: ((?:uae_lightning|callbacks)\.[\w.]+)", file.read_text())
    }
    assert named and named <= {*re.findall(r"^`([\w.]+)`$", text, re.MULTILINE)}


def test_sections_of_the_readme_become_pages_with_links_of_their_own(site):
    # red with `](docs/` left as it is
    evidence = (site / "pages" / "evidence.md").read_text()
    assert evidence.startswith("# Does it work?\n") and "](results.md)" in evidence and "](docs/" not in evidence


def test_a_picture_that_is_not_there_is_found(site):
    # red if code is taken for a link, or pictures are not looked at
    page = site / "pages" / "lost.md"
    page.write_text(
        "# Lost\n\n![one](pictures/none.png)\n\n    [two](none.md)\n\n[three](index.md) [four](https://x.org)\n"
    )
    try:
        assert [*site_pages.dangling(page.parent)] == ["lost.md: pictures/none.png"]
    finally:
        page.unlink()
