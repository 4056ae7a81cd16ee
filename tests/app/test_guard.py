"""Which addresses there are, who may call them, and how much they take: without a server, by the protocol alone."""

import asyncio

import pytest

from uae_lightning.app import guard, serving
from uae_lightning.usage import UsageError

LOCAL = (b"host", b"127.0.0.1:7860")


async def page(scope, receive, send):
    """Reads all that is sent, and says how much that was."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(path, headers=(LOCAL,), bodies=(b"",), hosts=serving.LOOPBACK):
    """(status or None, headers) of the answer."""
    waiting, sent = list(bodies), []

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(guard.Guard(page, hosts)(scope, receive, send))
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (None, {})


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/assets/index-abc.js", "/static/fonts/a.woff2", "/gradio_api/info", "/gradio_api/queue/join",
     "/gradio_api/queue/data", "/gradio_api/heartbeat/abc", "/gradio_api/call/generate/ab12", "/theme.css"],
)  # fmt: skip
def test_what_the_page_needs_is_open(path):
    # red with any of them taken out of OPEN, or `match` in place of `fullmatch` and a `$`
    status, headers = ask(path)
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/upload",
     "/gradio_api/proxy=https://example.org/", "/gradio_api/file=https://example.org/", "/static/../../../etc/passwd",
     "/assets/..%2f..%2fetc/passwd", "/monitoring", "/gradio_api/component_server", "/gradio_api/run/generate",
     "/gradio_api/vibe-edit", "/gradio_api/stream/a/b/c/playlist-file", "/config/../x", "//etc/passwd"],
)  # fmt: skip
def test_everything_else_is_not_there(path):
    # red with `file=` or `upload` in OPEN, or without the look for ".."
    assert ask(path)[0] == 404


def test_other_names_and_other_sites_are_refused():
    # red without the check of `host` (DNS rebinding), or of `origin`
    assert ask("/", [(b"host", b"evil.example:7860")])[0] == 403 and ask("/", [])[0] == 403
    assert ask("/", [(b"host", b"[::1]:7860")])[0] == 200 and ask("/", [(b"host", b"LOCALHOST")])[0] == 200
    assert ask("/config", [LOCAL, (b"origin", b"http://evil.example")])[0] == 403
    assert ask("/config", [LOCAL, (b"origin", b"http://127.0.0.1:7860")])[0] == 200
    assert ask("/", [(b"host", b"my.server")], hosts=None)[0] == 200  # there is a password


def test_a_request_is_bounded_also_where_its_length_is_not_told(monkeypatch):
    # red without `bounded`, or without the look at content-length
    monkeypatch.setattr(guard, "MOST_SENT", 10)
    assert ask("/config", [LOCAL, (b"content-length", b"11")], [b"a"])[0] == 413
    assert ask("/config", [LOCAL], [b"aaaaa", b"aaaaa"])[0] == 200
    assert ask("/config", [LOCAL], [b"aaaaa", b"aaaaaa", b"a"])[0] is None


def test_others_need_a_password():
    # red if 0.0.0.0 counts as the loopback, or short passwords are taken
    assert "127.0.0.1" in serving.hosts_of("127.0.0.1", None) and "::1" in serving.hosts_of("::1", None)
    assert serving.hosts_of("0.0.0.0", "a long password") is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "my.server"):
        with pytest.raises(UsageError, match="UAE_APP_PASSWORD"):
            serving.hosts_of(host, None)
    with pytest.raises(UsageError, match="has 5 letters"):
        serving.hosts_of("127.0.0.1", "short")


def test_a_port_that_is_taken():
    # red if the second falls on the first's, or the error names no option
    with serving.listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port} at 127.0.0.1 cannot be had"):
            serving.listening("127.0.0.1", port)
        assert serving.url_of(first) == f"http://127.0.0.1:{port}"
    with pytest.raises(UsageError, match="--host nowhere.invalid"):
        serving.listening("nowhere.invalid", 0)
