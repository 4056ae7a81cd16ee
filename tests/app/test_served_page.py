"""The page over HTTP, as a browser, Gradio's own client and somebody unfriendly call it."""

import re
import threading
import time

import pytest

pytest.importorskip("gradio", reason="the extra `app` is not installed")

import httpx
import small_runs
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from served import served
from small_runs import scene
from test_dropped_pictures import url_of

from uae_lightning.app import guard
from uae_lightning.app.models import READ_BACK
from uae_lightning.app.pictures import data_url
from uae_lightning.cli import main
from uae_lightning.report.page import write_report

runs, tabs = small_runs.runs, small_runs.tabs


@pytest.fixture(scope="module")
def url(tabs):
    with served(tabs) as url:
        yield url


@pytest.fixture
def client(url):
    return Client(url, verbose=False)


def test_a_picture_goes_round_and_is_seen_to(client, tabs):
    # red if the handler's outputs are swapped, or only the last is sent
    job = client.submit("small", data_url(scene(0)), 3, 1.5, 4, api_name="/reconstruct")
    pages = list(job)
    *_, (wanted, _) = tabs.reconstruct("small", data_url(scene(0)), 3, 1.5, 4)
    assert pages[-1] == wanted and len(pages) > 3 and "loading" in pages[0]


def test_two_users_at_once_get_their_own(url, tabs):
    # red with settings written into the shared model, or a picture kept in `Tabs`
    prompts, found = {"a red cat": (2, 1.0, 5), "a blue dog": (3, 1.5, 6)}, {}

    def user(prompt):
        how = (*prompts[prompt], 2, READ_BACK, False)
        found[prompt] = Client(url, verbose=False).predict("small", prompt, *how, api_name="/generate")

    users = [threading.Thread(target=user, args=(prompt,)) for prompt in prompts]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(60)
    for prompt, how in prompts.items():
        *_, wanted = tabs.generate("small", prompt, *how, 2, READ_BACK, False)
        assert found[prompt] == wanted


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (url_of(b"hello", "text/plain"), "cannot be read as a picture"),
        ("/etc/passwd", "this is no picture"),
        (data_url(Image.new("RGB", (4, 4))), "too small"),
        ("", "there is no picture yet"),
    ],
)
def test_a_bad_picture_is_answered_in_words(picture, words, client, runs):
    # red without `told`, which Gradio answers with "Error"
    with pytest.raises(AppError, match=words) as caught:
        client.predict("small", picture, 3, 1.0, 0, api_name="/reconstruct")
    assert str(runs) not in str(caught.value)


def test_an_error_nobody_expects_tells_nothing(client, tabs, monkeypatch, capfd):
    # red with show_error=True and no `in_words`
    monkeypatch.setattr(tabs.models, "latest", lambda name: 1 / 0)
    with pytest.raises(AppError, match="the terminal in which") as caught:
        client.predict("small", "a", "b", 3, 1.0, 0, api_name="/redraw")
    assert "division" not in str(caught.value) and "ZeroDivisionError" in capfd.readouterr().err


def test_no_file_of_this_machine_can_be_read_or_written(url, runs):
    # red without Guard
    secret = runs / "small" / "run.json"
    with httpx.Client(timeout=60, base_url=url) as http:
        for path in (f"/gradio_api/file={secret}", f"/file={secret}", "/gradio_api/file=/etc/passwd",
                     "/gradio_api/upload",
                     "/static/..%2f..%2f..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/routes.py",
                     "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://127.0.0.1:1/"):  # fmt: skip
            answer = http.get(path)
            assert answer.status_code == 404 and answer.text == "there is nothing here\n", path
        answer = http.post("/gradio_api/upload", files={"files": ("a.png", b"\x89PNG")})
        assert answer.status_code == 404


@pytest.fixture
def report(runs):
    path = write_report(runs / "small")
    yield path
    path.unlink(missing_ok=True)


def test_the_report_is_linked_and_shown_without_commands(url, client, tabs, report, runs):
    # red without the link, the whole file handed out, or scripts let run in it
    link = re.search(r'href="(report\?run=[^"]+)"', client.predict("small", api_name="/run_page"))[1]
    answer = httpx.get(f"{url}/{link}", timeout=60)
    assert answer.status_code == 200 and "<h2>Along the run</h2>" in answer.text
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "uae run" in report.read_text() and "uae run" not in answer.text and str(runs) not in answer.text
    assert httpx.get(f"{url}/report?run=../small", timeout=60).text.startswith("there is no run")
    report.rename(runs / "elsewhere.html")
    (runs / "small" / "report.html").symlink_to(runs / "elsewhere.html")
    answer = httpx.get(f"{url}/{link}", timeout=60)
    assert answer.status_code == 404 and "has no report yet" in answer.text
    assert "report?run" not in client.predict("small", api_name="/run_page")


def test_what_is_shown_names_no_place_of_this_machine(url, client, runs):
    # red with paths as the names of runs, or Gradio's file components in place of `data:` URLs
    with httpx.Client(timeout=60, base_url=url) as http:
        texts = [http.get(path).text for path in ("/", "/config", "/gradio_api/info")]
    texts += [client.predict(api_name="/runs"), client.predict("small", api_name="/run_page")]
    for text in texts:
        assert str(runs) not in text and runs.parent.name not in text and "/tmp/" not in text


def test_nothing_comes_from_another_server(url):
    # red with a font or a script of a CDN in the page, analytics, or without the policy
    answer = httpx.get(url, timeout=60)
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["'](https?:[^"']+)""", answer.text)
    assert [one for one in loaded if not one.startswith(url)] == []
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    config = httpx.get(f"{url}/config", timeout=60).json()
    assert config["analytics_enabled"] is False and not config.get("is_space") and "googleapis" not in str(config)


def test_too_much_is_refused(url):
    # red without the bound on what is sent
    with httpx.Client(timeout=60, base_url=url, headers={"content-type": "application/json"}) as http:
        body = b'"' + b"a" * guard.MOST_SENT + b'"'
        try:
            assert http.post("/gradio_api/queue/join", content=body).status_code == 413
        except httpx.WriteError:  # it was hung up on before all was sent
            pass
        assert http.get("/config").status_code == 200


def test_the_idle_page_answers_within_a_second(url, client):
    # red with a model loaded, or all curves read, to answer
    client.predict("small", api_name="/run_page")
    slowest = 0.0
    for _ in range(3):
        started = time.process_time()
        httpx.get(url, timeout=60), client.predict(api_name="/runs"), client.predict("small", api_name="/run_page")
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 1, slowest


def test_a_password_is_asked_for(tabs):
    # red with Gradio's own `auth`, whose login page tells the names of all runs
    known = {"auth": ("uae", "correct horse battery")}
    with served(tabs, known["auth"][1]) as url, httpx.Client(timeout=60, base_url=url) as http:
        for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a", "/theme.css"):
            answer = http.get(path)
            assert answer.status_code == 401 and "small" not in answer.text, path
            assert http.get(path, auth=("uae", "correct horse")).status_code == 401, path
        assert http.post("/gradio_api/queue/join", json={"data": []}).status_code == 401
        client = Client(url, httpx_kwargs=known | {"timeout": 60}, verbose=False)
        assert "small" in client.predict(api_name="/runs")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--host=0.0.0.0"], ["--host 0.0.0.0 can be reached by others", "UAE_APP_PASSWORD"]),
        (["none"], ["RUN_FOLDER none is no folder"]),
        (["--config=none.yaml"], ["--config none.yaml does not exist"]),
        (["--verifier=none.yaml"], ["--verifier none.yaml does not exist"]),
        (["--port=-1"], ["--port", "whole number"]),
        (["--prt=1"], ["unknown option --prt", "--port"]),
    ],
)
def test_mistakes_in_the_call_of_the_command(args, words, tmp_path, monkeypatch, capsys):
    # red if one of them starts a server
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UAE_APP_PASSWORD", raising=False)
    assert main(["app", *args]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_the_command_serves_and_loads_nothing(tmp_path, monkeypatch, capsys):
    # red with another address, or a model loaded before somebody asks
    from uae_lightning.app import serving

    seen, build = {}, serving.server

    def once(app):
        server = build(app)

        def run(sockets):
            thread = threading.Thread(target=type(server).run, args=(server,), kwargs={"sockets": sockets})
            thread.start()
            seen["url"] = serving.url_of(sockets[0])
            seen["page"] = httpx.get(seen["url"], timeout=60).text
            server.should_exit = True
            thread.join(20)

        server.run = run
        return server

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "server", once)
    monkeypatch.setattr("uae_lightning.app.models.build_autoencoder", lambda *given: pytest.fail("it loads a model"))
    assert main(["app", "--port=0"]) == 0
    assert seen["url"] in capsys.readouterr().out and "127.0.0.1" in seen["url"] and "Reconstruct" in seen["page"]
