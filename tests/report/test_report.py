"""The report of a run that is written here by hand: two stages, the second one under way."""

import html
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from uae_lightning.report import charts
from uae_lightning.report.captions import CaptionMarker, as_html, plain
from uae_lightning.report.page import STYLE, for_others, write_report
from uae_lightning.report.stages import parts_of, time_bar


@pytest.fixture
def run(tmp_path):
    record = {"name": "<demo>", "command": "uae run", "written": "today", "versions": {"torch": "2"},
              "stages": ["draw", "see", "later"]}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    for number, stage in enumerate(("draw", "see")):
        write_stage(tmp_path / stage, base=number, done=stage == "draw")
    return tmp_path


def write_stage(folder, base, done):
    rng = np.random.default_rng(base)
    (folder / "gallery").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 7\n")
    rows = []
    for step in (0, 5, 10):
        reward = (base + step / 10 + rng.random(8)).tolist()
        rows.append({"step": step, "keys": [f"k{i}" for i in range(8)], "reward": reward, "reward_name": "Grid",
                     "unrewarded": reward, "unrewarded_name": "Facts", "caption_tokens": [3 + base] * 8})  # fmt: skip
        Image.new("RGB", (64, 8), (step * 20, 0, 200)).save(folder / "gallery" / f"step-{step:06d}.png")
    Image.new("RGB", (64, 8), "white").save(folder / "gallery" / "originals.png")
    captions = {str(step): [f"{step} & more"] * 8 for step in (0, 5, 10)}
    (folder / "gallery" / "captions.json").write_text(json.dumps(captions))
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if done:
        (folder / "stage.json").write_text(
            json.dumps({"seconds": 75.0, "command": "uae fit", "time": {"steps": 60, "validation": 9}})
        )
    with SummaryWriter(folder) as writer:
        for step in range(10):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
            writer.add_scalar("policy/clip_fraction", float("nan") if step == 3 else 0.1, step)
            writer.add_scalar("time/score", 0.5, step)


class Balanced(HTMLParser):
    """Every tag that opens closes."""

    def __init__(self):
        super().__init__()
        self.open, self.counts = [], {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_shows_stages_curves_and_pictures(run):
    # red with a section left out of write_report, or a tag left open in one
    text = write_report(run).read_text()
    page = Balanced()
    page.feed(text)
    assert page.open == []
    # held-out curves; loss and clip fraction of each stage, no time/score; the time of the stage that is done
    assert page.counts["svg"] == 3 + 2 * 2 + 1
    assert page.counts["img"] == 1 + 8 * 4  # hero; original, start, after each of two stages
    assert (
        "1 of 3 stages finished" in text
        and "1 min 15 s" in text
        and "(steps 60; validation 9)" in text
        and "under way" in text
        and "seed 7" in text
    )
    assert "&lt;demo&gt;" in text and "<demo>" not in text and "10 &amp; more" in text  # red without escape()
    assert not re.search(r'(src|href)="(?!data:|http://127)', text) and "<script" not in text  # self-contained
    for drawing in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 96}


BETTER = {"perception/hallucination": -1, "language/tokens": 0}


def write_evaluation(run, **changes):
    """Figures by path: (before, after)."""
    pairs = {
        "unified_bench/overall": (0.5, 0.8),
        "unified_bench/<clip>": (0.4, 0.9),
        "unified_bench/pixels": (0.6, 0.7),
        "perception/hallucination": (0.3, 0.1),
        "perception/color": (0.9, 0.6),
        "language/tokens": (18.0, 34.0),
    } | changes
    titles = {"overall": "unified score", "hallucination": "objects that are not there"}
    evaluation = {"reward": "Grid", "kin_of_reward": ["pixels"], "suites": {}}
    for part, of in [("before", lambda a, b: a), ("after", lambda a, b: b), ("gain", lambda a, b: b - a)]:
        evaluation[part] = {}
        for path, pair in pairs.items():
            suite, name = path.split("/", 1)
            evaluation[part].setdefault(suite, {})[name] = interval(of(*pair))
    for suite, figures in evaluation["before"].items():
        rows = [{"figure": name, "title": titles.get(name, name)} for name in (*figures, "single object")]
        high = None if suite == "language" else 1.0
        better = {name: {"better": BETTER.get(f"{suite}/{name}", 1)} for name in figures}
        evaluation["suites"][suite] = {
            "groups": [{"title": suite, "text": "", "rows": rows, "high": high},
                       {"title": "Drawing", "text": "", "rows": rows[-1:], "high": 1.0}],
            "statistics": better,
        }  # fmt: skip
    evaluation["before"]["instruments"] = {"parser": interval(0.995)}
    evaluation["before"]["language"]["parses"] = interval(0.9)  # without a gain
    evaluation["suites"]["language"]["groups"][0]["rows"].append({"figure": "parses", "title": "is understood"})
    (run / "summary.json").write_text(json.dumps({"evaluation": evaluation}))


def dots(row):
    """Where the means are drawn in a row."""
    drawing = ElementTree.fromstring(re.search("<svg.*?</svg>", row)[0])
    return [float(circle.get("cx")) for circle in drawing.findall("circle")]


def test_report_shows_what_the_evaluation_found(run):
    # red with `any` in place of `all`, with `better` of hallucination left at 1, or with `top` left out of bars()
    write_evaluation(run)
    text = write_report(run).read_text()
    page = Balanced()
    page.feed(text)
    assert page.open == []
    section = text[text.index("What changed, by judges") : text.index("The stages")]
    rows = {re.sub("<.*?>", "", row.split("</td>")[0]): row for row in section.split("<tr>")[2:]}
    assert set(rows) >= {"unified score", "&lt;clip&gt;", "pixels (shares weights with the reward)", "tokens"}
    assert "single object" not in section and "Drawing" not in section  # not measured
    assert "+0.300" in rows["unified score"] and 'class="good"' in rows["unified score"]
    assert 'class="good"' in rows["objects that are not there"] and 'class="bad"' in rows["color"]
    assert "18.0" in rows["tokens"] and "+16.0" in rows["tokens"] and 'class=""' in rows["tokens"]
    assert "The reward was Grid" in section and "parser 99.5%" in section
    assert "is understood" not in section
    assert dots(rows["unified score"]) == pytest.approx([8 + 0.5 * 224, 8 + 0.8 * 224], abs=0.1)  # on a scale to 1
    assert dots(rows["tokens"]) == pytest.approx([8 + x / 1.05 / 34.01 * 224 for x in (18, 34)], abs=0.1)


def test_a_gain_that_may_be_none_has_no_color(run):
    # red with `mean` in place of `low` in the look at the sign
    write_evaluation(run, **{"unified_bench/overall": (0.5, 0.505)})
    text = write_report(run).read_text()
    assert '<span class="">+0.005</span>' in text


def test_before_and_after_are_the_first_and_last_reconstructions(run):
    # red with `columns[-2]` in place of `columns[-1]`
    Image.new("RGB", (64, 8), "lime").save(run / "see" / "gallery" / "step-000010.png")
    write_report(run)
    image = Image.open(run / "before_after.png")
    rows = [image.getpixel((image.width - 60, int(image.height * part))) for part in (1 / 6, 1 / 2, 5 / 6)]
    assert rows == [(255, 255, 255), (0, 0, 200), (0, 255, 0)]


def test_a_run_without_results_is_refused(tmp_path):
    # red without the check: an IndexError says nothing
    (tmp_path / "run.json").write_text(json.dumps({"name": "x", "stages": ["a"]}))
    with pytest.raises(FileNotFoundError, match="nothing to report"):
        write_report(tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.912, 0.934), (0, 12345), (-3e-7, 2e-7)])
def test_ticks_are_few_round_and_inside(low, high):
    # red with `floor` in place of `ceil` for the first tick
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_running_mean_of_a_constant_is_the_constant():
    # red without the division by mass: pulled towards 0
    assert charts.smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])


class Marker(CaptionMarker):
    legend = "Bold is new."

    def mark(self, captions, key, data):
        return [f"{key} **{plain(text)}** ~~not~~" for text in captions]


def test_captions_are_marked_and_nothing_in_them_is_markup(run):
    # red with `marked` printed as it is, or keys that are not those of the pictures
    captions = {"0": ["<b>*x*"] * 8, "10": ["~~y~~"] * 8}
    (run / "draw" / "gallery" / "captions.json").write_text(json.dumps(captions))
    text = write_report(run, Marker()).read_text()
    page = Balanced()
    page.feed(text)
    assert page.open == [] and "Bold is new." in text
    shown = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert shown[1] == "k0 <b>&lt;b&gt;*x*</b> <s>not</s>" and shown[2] == "k0 <b>~~y~~</b> <s>not</s>"
    assert shown[5].startswith("k1 ") and as_html("**open \\* ~~") == "<b>open * <s></s></b>"


def test_what_a_stage_brought_a_minute_and_where_its_time_went(run):
    # red with 60 in the wrong place, or with verbs counted beside the steps they are part of
    text = write_report(run).read_text()
    assert "+0.7571" in text[text.index("Gain a minute") :].split("</tr>")[1]  # .9464 in 75 seconds
    time = {"steps": 60.0, "rollout": 30.0, "update": 20.0, "validation": 9.0, "start and end": 6.0}
    parts = {"rollout": 30.0, "update": 20.0, "other steps": 10.0, "validation": 9.0, "start and end": 6.0}
    assert parts_of(time) == parts and sum(parts.values()) == 75.0
    drawing = ElementTree.fromstring(time_bar(time, 150.0))
    widths = [float(rect.get("width")) for rect in drawing.iter("rect")]
    assert sum(widths) == pytest.approx(120) and widths[0] == pytest.approx(48)  # of 240 px for the longest


def test_who_loses_the_reward_sums_to_what_is_lost(run):
    # red with `before` and `after` of a link exchanged, or a bar for suites without links
    names = [None, "codec", "t", "drawn"]
    titles = ("codec", "drawing", "caption")
    links = [{"title": title, "before": names[i], "after": names[i + 1]} for i, title in enumerate(titles)]
    figures = {"codec": (0.99, 0.99), "t": (0.9, 0.95), "drawn": (0.6, 0.9)}
    write_evaluation(run, **{f"chain/{name}": pair for name, pair in figures.items()})
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluation"]["suites"]["chain"]["links"] = links
    (run / "summary.json").write_text(json.dumps(summary))
    text = write_report(run).read_text()
    section = text[text.index("Who loses the reward") : text.index("The stages")]
    assert "At the start 0.400 of the reward is lost: the codec 0.010, the drawing 0.090, the caption 0.300." in section
    assert "the caption 0.050. Most is lost by the caption." in section
    ElementTree.fromstring(re.search("<svg.*?</svg>", section)[0])
    write_evaluation(run)
    assert "Who loses the reward" not in write_report(run).read_text()


def test_the_page_is_for_phones_the_dark_and_paper():
    # red without a media query, or with a color that stays as it is in the dark
    for wanted in ("prefers-color-scheme: dark", "max-width: 640px", "@media print"):
        assert wanted in STYLE
    dark = set(re.findall("--[a-z0-9]+", STYLE[STYLE.index("dark)") : STYLE.index("box-sizing")]))
    assert dark == set(re.findall(r"var\((--[a-z0-9]+)\)", STYLE))


def test_the_report_opens_the_run_in_the_app(run, tmp_path):
    # red with the name left as it is in the link, or the path in the command
    place = (tmp_path / "my runs & more").resolve()
    place.mkdir()
    for name in ("run.json", "draw", "see"):
        (run / name).rename(place / name)
    text = write_report(place).read_text()
    assert "http://127.0.0.1:7860/?run=my%20runs%20%26%20more" in text
    command = re.search(r'<code class="copy">(.*?)</code>', text)[1]
    assert shlex.split(html.unescape(command)) == ["uae", "app", str(place)]


def test_others_see_no_command_and_no_setting(run):
    # red with a section that names them left unmarked, or one cut out too much
    text = write_report(run).read_text()
    shown = for_others(text)
    assert "uae run" in text and "seed_everything" in text and str(run) in text
    assert not any(words in shown for words in ("uae run", "uae fit", "seed_everything", "uae app", str(run)))
    page = Balanced()
    page.feed(shown)
    assert page.open == [] and page.counts["svg"] == 3 + 2 * 2 + 1
    with pytest.raises(ValueError, match="an older version"):
        for_others("<html></html>")
