"""The page on the loopback, in a thread of the test's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from uae_lightning.app import page, serving
from uae_lightning.app.tabs import Tabs


@contextmanager
def served(tabs: Tabs, password: str | None = None) -> Iterator[str]:
    """Its address, while it is served."""
    with serving.listening("127.0.0.1", 0) as place:
        server = serving.server(page.application(tabs, serving.hosts_of("127.0.0.1", password), password))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        try:
            yield serving.url_of(place)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
