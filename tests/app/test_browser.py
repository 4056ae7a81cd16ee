"""The flows of the page in a real browser, where there is one: `apt-get install chromium chromium-driver` and
`pip install selenium`."""

import base64
import io
import json
import shutil
import time

import pytest

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

import small_runs
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from served import served
from small_runs import tabs_of, validate

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="there is no Chromium with its driver")
PATIENCE = 90  # seconds, on a machine with other work


class Visitor:
    """A window of the browser, on the page."""

    def __init__(self, driver, url, at="#reconstruct"):
        self.driver = driver
        driver.switch_to.new_window("window")
        self.window = driver.current_window_handle
        driver.get(url)
        self.one(at)

    def here(self):
        self.driver.switch_to.window(self.window)
        return self

    def all(self, css):
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()]

    def until(self, found):
        ends = time.time() + PATIENCE
        while not (value := found()):
            assert time.time() < ends, "the page does not get there"
            time.sleep(0.2)
        return value

    def one(self, css):
        return self.until(lambda: self.all(css))[0]

    def tab(self, name):
        self.driver.find_element(By.XPATH, f"//button[@role='tab' and normalize-space()='{name}']").click()

    def finished(self, place):
        self.one(f"{place} .uae[data-done=true]")
        return self.driver.find_element(By.CSS_SELECTOR, place)

    def pictures(self, place):
        script = "return [...document.querySelectorAll(arguments[0] + ' img')].map(one => one.src)"
        return self.driver.execute_script(script, place)

    def drop(self, place, file):
        self.driver.find_element(By.CSS_SELECTOR, f"{place} input[type=file]").send_keys(str(file))


runs = small_runs.runs


@pytest.fixture(scope="module")
def url(runs):
    with served(tabs_of(runs)) as url:
        yield url


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    words = "headless=new no-sandbox disable-gpu disable-dev-shm-usage window-size=1200,1000 disable-component-update"
    for word in (f"--{word}" for word in [*words.split(), "disable-background-networking"]):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def visitor(driver, url):
    return Visitor(driver, url)


@pytest.fixture
def photo(tmp_path):
    """As a phone writes it: lying on its side, with a note of which side is up."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.linear_gradient("L").convert("RGB").resize((120, 60)).save(tmp_path / "photo.jpg", exif=turned)
    return tmp_path / "photo.jpg"


def test_a_photo_of_a_phone_is_reconstructed_upright(visitor, photo):
    # red if the drop zone sends nothing, or the picture lies on its side
    visitor.here().drop("#picture-reconstruct", photo)
    visitor.one("#picture-reconstruct img")
    visitor.one("#reconstruct").click()
    done = visitor.finished("#reconstructed")
    original, drawn, *rest = visitor.pictures("#reconstructed")
    assert original != drawn and len(rest) == 2 + 3 and "PixelSimilarity" in done.text  # the slider and three steps
    picture = Image.open(io.BytesIO(base64.b64decode(original.partition(",")[2]))).convert("L")
    left, right = picture.getpixel((4, 48)), picture.getpixel((91, 48))
    assert picture.size == (96, 96) and abs(left - right) > 50  # in the file it goes from top to bottom


def test_the_slider_moves(visitor):
    # red if the page's policy stops the handler
    slider = visitor.here().driver.find_element(By.CSS_SELECTOR, ".uae-slider input")  # unseen, over the pictures
    move = "arguments[0].value = 100; arguments[0].dispatchEvent(new Event('input'))"
    visitor.driver.execute_script(move, slider)
    cut = "return document.querySelector('.uae-slider').style.getPropertyValue('--cut')"
    assert visitor.driver.execute_script(cut) == "100%"


def test_the_caption_goes_on_to_words_and_is_redrawn(visitor):
    # red if the caption does not arrive, or an edited one draws nothing else
    visitor.here().tab("Words")
    edited = visitor.one("#edited textarea")
    visitor.until(lambda: edited.get_attribute("value"))
    edited.send_keys(" red cat")
    visitor.one("#redraw").click()
    visitor.finished("#redrawn")
    before, after = visitor.pictures("#redrawn")
    assert before != after
    visitor.one("#listen").click()
    assert len(visitor.finished("#heard").find_elements(By.CSS_SELECTOR, "mark")) >= 3


def test_a_prompt_with_marks_is_drawn_and_shown_as_text(visitor):
    # red if texts reach the page unescaped
    visitor.here().tab("Generate")
    visitor.one("#prompt textarea").send_keys("<b>red</b> {{cat}} ${1 + 1}")
    visitor.one("#generate").click()
    visitor.finished("#generated")
    assert len(visitor.pictures("#generated")) == 4


def test_stages_are_compared(visitor):
    # red if the button draws no scene, or the moments are not all there
    visitor.here().tab("Compare")
    visitor.one("#scene-compare").click()
    visitor.one("#picture-compare img")
    visitor.one("#compare").click()
    assert "after second" in visitor.finished("#compared").text and len(visitor.pictures("#compared")) == 4


def test_a_file_that_is_no_picture_is_refused_in_words(visitor, tmp_path):
    # red if nothing is said, or "Error"
    (tmp_path / "notes.txt").write_text("hello")
    visitor.here().tab("Reconstruct")
    visitor.drop("#picture-reconstruct", tmp_path / "notes.txt")
    visitor.until(lambda: "not a picture" in visitor.one("#picture-reconstruct").text)
    visitor.one("#reconstruct").click()
    body = visitor.driver.find_element(By.TAG_NAME, "body")
    visitor.until(lambda: "cannot be read as a picture" in body.text)


def test_two_visitors_at_once(visitor, driver, url):
    # red if the second waits for ever, or sees the first's picture
    second = Visitor(driver, url)
    for number, one in enumerate((visitor, second)):
        one.here().tab("Generate")
        field = one.one("#prompt textarea")
        field.clear()
        field.send_keys(["a red cat", "a blue dog"][number])
        one.driver.execute_script("document.querySelector('#generated .uae')?.remove()")
        one.one("#generate").click()
    found = [(one.here().finished("#generated"), one.pictures("#generated"))[1] for one in (visitor, second)]
    assert len(found[0]) == len(found[1]) == 4 and not set(found[0]) & set(found[1])


def test_a_run_is_watched_while_it_trains(visitor, runs):
    # red without the timer, or if news are not noticed
    visitor.here().tab("Runs")
    table = visitor.one("#runs")
    visitor.until(lambda: "done" in table.text and "0.7150" in table.text)
    visitor.one("#run iframe")
    (runs / "small" / "second" / "stage.json").unlink()
    validate(runs / "small" / "second", 8, 0.9)
    visitor.until(lambda: "under way" in table.text and "0.9150" in table.text)


def test_a_link_opens_the_runs_tab_on_a_run(visitor, driver, url, runs):
    # red if the address is not looked at, or the run that is drawn with stays another
    shutil.copytree(runs / "small", runs / "study" / "other")
    linked = Visitor(driver, f"{url}/?run=other", at="#runs")
    linked.until(lambda: "study/other" in linked.one("#runs").text)
    for choice in ("#look-at input", "#drawn-with input"):
        linked.until(lambda choice=choice: linked.one(choice).get_attribute("value") == "study/other")
    shutil.rmtree(runs / "study")
    Visitor(driver, f"{url}/?run=none", at="#runs")
    linked.until(lambda: "there is no run" in driver.find_element(By.TAG_NAME, "body").text)


def test_nothing_was_asked_of_another_server(visitor, url):
    # red with a font of a CDN, or analytics; runs last
    asked = [json.loads(line["message"])["message"] for line in visitor.driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert urls and [one for one in urls if not one.startswith((url, "data:", "blob:", "about:"))] == []
    severe = [line["message"] for line in visitor.driver.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []
