"""What stands before the page: who may call it, which addresses there are, how much may be sent, what may be loaded."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

USER = "uae"
MOST_SENT = 30 << 20  # bytes of a request: a picture of pictures.MOST_BYTES in base64, and the other inputs
# All that the page and Gradio's client ask for; not among them are uploads to a disk, files, and proxies.
OPEN = re.compile(
    r"/(|report|config/?|theme\.css|robots\.txt|manifest\.json|favicon\.ico|(assets|static|svelte)/[\w./-]+"
    r"|gradio_api/(info/?|startup-events|app_id/?|reset/?|cancel|theme\.css"
    r"|queue/(join|data)|heartbeat/\w+|call/\w+(/\w+)?))"
)
HEADERS = {
    "content-security-policy": (  # nothing comes from, or goes to, another server; Gradio's own scripts are inline
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


ASK = (b"www-authenticate", b'Basic realm="uae", charset="UTF-8"')


class Guard:
    """ASGI middleware.

    Args:
        inner: the page.
        hosts: names and addresses under which it may be called: those of the loopback, where another site could give
            itself the loopback's address (DNS rebinding); None are all, for a page with a password.
        password: of USER, asked for by HTTP's Basic scheme before anything is answered; None asks for none. (Gradio's
            own login page tells the names of all inputs and choices to whoever opens it.)
    """

    def __init__(self, inner: Application, hosts: tuple[str, ...] | None, password: str | None = None) -> None:
        self.inner, self.hosts = inner, hosts
        self.wanted = None if password is None else basic(USER, password)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        # no websockets: Gradio has none any more

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None and host_of(headers.get("host", "")) not in self.hosts:
            return await refuse(send, 403, "call this page by the address that `uae app` printed")
        if (origin := headers.get("origin")) is not None and origin.partition("://")[2] != headers.get("host"):
            return await refuse(send, 403, "another site's page may not use this one")
        if self.wanted is not None and not hmac.compare_digest(headers.get("authorization", "").encode(), self.wanted):
            await asyncio.sleep(1 if "authorization" in headers else 0)  # guessing takes its time
            return await refuse(send, 401, "there is a password, of the user uae", ASK)
        if not OPEN.fullmatch(scope["path"]) or ".." in scope["path"]:
            return await refuse(send, 404, "there is nothing here")
        if (length := headers.get("content-length", "0")).isdigit() and int(length) > MOST_SENT:
            return await refuse(send, 413, f"more than {MOST_SENT >> 20} MB were sent: take a smaller picture")
        await self.inner(scope, bounded(receive), guarded(send))


def basic(user: str, password: str) -> bytes:
    """The header of who knows the password."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def host_of(header: str) -> str:
    """Without the port: "[::1]:7860" -> "[::1]"."""
    return re.sub(r":\d*$", "", header.lower())


def bounded(receive: Receive) -> Receive:
    """Of a body whose length nobody has told, no more than is allowed: then the sender counts as gone."""
    received = 0

    async def receive_more() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > MOST_SENT else message

    return receive_more


def guarded(send: Send) -> Send:
    """With the headers above."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *ours]}
        await send(message)

    return send_on


async def refuse(send: Send, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *more]
    await guarded(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{words}\n".encode()})
