"""A JSON endpoint over HTTP that may be slow, busy, away or wrong: bounded retries, and a key that is told nobody.

httpx2 is what huggingface_hub asks with, so it is installed. The retries are a loop of this file, not of tenacity: the
answer says how long to wait (Retry-After) and which mistakes are final, and one package less is to be trusted.
"""

from __future__ import annotations

import ipaddress
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from uae_lightning.usage import UsageError

Answer = TypeVar("Answer")
Item = TypeVar("Item")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, twice as long before each later one
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
LOCKED = (401, 403)


class NoAnswer(Exception):
    """All attempts were in vain; the text says what came of the last."""


class Refused(UsageError):
    """The endpoint refuses the request itself, as it will every time.

    Args:
        status, said: the answer's.
    """

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class NotAsAsked(Exception):
    """The answer is none to what was asked: half an answer, a page of a proxy, too few values."""


class Endpoint:
    """Posts JSON to a URL.

    Args:
        owner: whose endpoint it is, for messages.
        url: http:// or https://; no names and passwords in it.
        api_key_env: name of the environment variable that holds the key, sent as a bearer token; None sends none.
        timeout: seconds that an attempt may take.
        attempts: at most, for each request.

    Raises:
        UsageError: the URL is none, or there is no such variable.
    """

    def __init__(self, owner: str, url: str, api_key_env: str | None, timeout: float, attempts: int) -> None:
        self.owner, self.url, self.timeout, self.attempts = owner, checked_url(owner, url), timeout, attempts
        self.headers = {} if api_key_env is None else {"Authorization": f"Bearer {key_in(owner, api_key_env)}"}
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> httpx2.Client:
        """Made when it is first needed; threads share its connections."""
        with self._lock:
            if self._client is None:
                url = httpx2.URL(self.url)
                self._client = httpx2.Client(
                    headers=self.headers,
                    timeout=self.timeout,
                    trust_env=not is_loopback(url.host),  # no proxy leads there
                    verify=url.scheme == "https",  # else certificates would be read for nothing
                )
            return self._client

    def post(self, body: dict[str, Any], read: Callable[[Any], Answer], *, text: bool = False) -> Answer:
        """What `read` makes of the JSON that is answered, or of the `text`; it raises NotAsAsked, or a KeyError,
        TypeError, ValueError or IndexError, where that is not what was asked for.

        Raises:
            NoAnswer: after all attempts.
            Refused: another attempt would be refused too.
        """
        for attempt in range(self.attempts):
            try:
                response = self.client.post(self.url, json=body)
                self.refuse(response)
                if response.status_code == 200:
                    return read(response.text if text else response.json())
                trouble = f"it answers {response.status_code} {response.reason_phrase} ({words(response)})"
                wait = retry_after(response)
            except UsageError:
                raise
            except httpx2.TimeoutException:
                trouble, wait = f"no answer within {self.timeout:g} s", None
            except httpx2.HTTPError as error:  # of the connection
                trouble, wait = str(error) or type(error).__name__, None
            except (NotAsAsked, KeyError, TypeError, ValueError, IndexError) as error:
                trouble, wait = f"it answers something else than was asked for ({type(error).__name__}: {error})", None
            if attempt + 1 < self.attempts:
                time.sleep(min(FIRST_WAIT * 2**attempt if wait is None else wait, LONGEST_WAIT))
        raise NoAnswer(f"{self.url}, {self.attempts} attempts: {trouble}"[:400])

    def refuse(self, response: httpx2.Response) -> None:
        """Raises Refused where another attempt would be refused too."""
        status, said = response.status_code, words(response)
        if status == 200 or status in PASSING:
            return
        if status in LOCKED:
            remedy = "name the environment variable that holds the right key with `api_key_env`"
        elif status in (301, 302, 307, 308, 404, 405):
            remedy = "correct the URL"
        else:
            remedy = "it does not take what is asked: correct the options, or the server"
        message = f"{self.owner}: {self.url} answers {status} {response.reason_phrase} ({said}): {remedy}"
        raise Refused(message, status, said)


def words(response: httpx2.Response) -> str:
    """The first of an answer, to be shown."""
    return " ".join(response.text.split())[:200]


def checked_url(owner: str, url: str) -> str:
    try:
        parsed = httpx2.URL(url)
        urlsplit(url).port  # noqa: B018  it looks at brackets and ports, too
    except (httpx2.InvalidURL, ValueError) as error:
        raise UsageError(f"{owner}: {url!r} is no URL ({error}): write http://HOST:PORT/PATH") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{owner}: {url!r} is no URL: write http://HOST:PORT/PATH or https://HOST/PATH")
    if parsed.userinfo:
        raise UsageError(f"{owner}: names and passwords do not belong into a URL: put the key into `api_key_env`")
    return url


def key_in(owner: str, variable: str) -> str:
    if not (key := os.environ.get(variable, "").strip()):
        raise UsageError(
            f"{owner}: there is no environment variable {variable}: export it with the key of the endpoint"
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the answer asks to wait; None where it does not say, or says a date."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def concurrently(function: Callable[[Item], Answer], items: list[Item], threads: int) -> list[Answer]:
    """The function of each item, in their order, some at a time. The threads are daemons: an interrupted process does
    not wait for answers. Raises what the function of the first item raises that does."""
    found: list[Any] = [None] * len(items)
    errors: dict[int, BaseException] = {}
    places, lock = iter(range(len(items))), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                found[place] = function(items[place])
            except BaseException as error:
                errors[place] = error

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[min(errors)]
    return found
