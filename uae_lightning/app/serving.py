"""The address of the page: the loopback, unless another is asked for and there is a password."""

from __future__ import annotations

import ipaddress
import os
import socket

import uvicorn

from uae_lightning.app.guard import Application
from uae_lightning.usage import UsageError

PORT = 7860
TRIED = 20  # ports from PORT on, where none is asked for
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST = 12  # letters of a password
SECONDS = 2  # that requests under way have once it is to end


def hosts_of(host: str, password: str | None) -> tuple[str, ...] | None:
    """Names under which the page may be called; None is any.

    Raises:
        UsageError: others could reach it without a password, or with one that can be guessed.
    """
    if password is not None and len(password) < SHORTEST:
        raise UsageError(f"UAE_APP_PASSWORD has {len(password)} letters: take {SHORTEST} at least")
    if is_loopback(host):
        return (*LOOPBACK, host.lower())
    if password is None:
        raise UsageError(
            f"--host {host} can be reached by others: set a password in the environment variable UAE_APP_PASSWORD, or "
            "leave --host out and forward the port (ssh -L 7860:localhost:7860 THIS_MACHINE)"
        )
    return None


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name: whose address it is, others decide
        return False


def listening(host: str, port: int | None) -> socket.socket:
    """A socket of that address, bound; without a port the first free one from PORT on.

    Raises:
        UsageError: the port is taken, or the address is none of this machine.
    """
    for number in range(PORT, PORT + TRIED) if port is None else [port]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        except socket.gaierror as error:
            raise UsageError(f"--host {host} is no address of this machine: {error.strerror}") from error
        except OSError as error:
            reason = error
    asked = f"--port {port}" if port is not None else f"each port from {PORT} to {PORT + TRIED - 1}"
    raise UsageError(
        f"{asked} at {host} cannot be had ({os.strerror(reason.errno)}): name another with --port"
    ) from reason


def url_of(place: socket.socket) -> str:
    host, port = place.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server(app: Application) -> uvicorn.Server:
    """To be run with `listening`'s socket; quiet but for errors."""
    options = {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=SECONDS, timeout_keep_alive=30, **options))
