"""A server that gives the scores of any reward to `rewards.http_reward.HttpReward`.

The standard library's: one route, one model that computes for one request after the other, threads that read and wait.
A framework would bring six packages for that.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import json
import math
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uae_lightning.interfaces import Reward
from uae_lightning.types import RewardInput

PATH = "/score"
MOST_BYTES = 256 * 2**20  # of a request
MOST_PIXELS = 2**24  # of a picture
WAITING = 16  # requests that wait for the model at most; more are told to come again
COME_AGAIN = 1  # seconds
READ_WITHIN = 60.0  # seconds that a client may be silent


class Refused(Exception):
    """The request is one that cannot be answered: a status of HTTP, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers.

    Args:
        reward: frozen, on its device.
        address: host and port; port 0 is a free one.
        token: what clients must know; None asks for nothing.
        micro_batch: pictures scored at a time.
    """

    daemon_threads = True

    def __init__(
        self, reward: Reward, address: tuple[str, int], token: str | None = None, micro_batch: int = 32
    ) -> None:
        self.reward, self.token, self.micro_batch = reward, token, micro_batch
        self.model, self.room = threading.Lock(), threading.Semaphore(WAITING)
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}{PATH}"

    def answer(self, request: Any) -> dict[str, Any]:
        """Raises Refused where it is no request, or the reward cannot judge it."""
        inputs = inputs_of(request, self.reward)
        device = next(
            (tensor.device for tensor in [*self.reward.parameters(), *self.reward.buffers()]), torch.device("cpu")
        )
        starts = range(0, len(inputs.captions), self.micro_batch)
        try:
            with self.model, torch.no_grad():
                outputs = [self.reward(on(device, inputs[at : at + self.micro_batch])) for at in starts]
        except ValueError as error:
            raise Refused(422, str(error)) from error
        parts = {
            name: [value for output in outputs for value in listed(output.parts[name])] for name in outputs[0].parts
        }
        return {"scores": [value for output in outputs for value in listed(output.total)], "parts": parts}


class Handler(BaseHTTPRequestHandler):
    server: RewardServer
    protocol_version = "HTTP/1.1"
    timeout = READ_WITHIN

    def do_GET(self) -> None:
        """Whether it is there, and what it serves."""
        if self.path != "/health":
            return self.send(404, {"error": f"GET /health and POST {PATH}"})
        return self.send(
            200, {"reward": type(self.server.reward).__name__, "originals": self.server.reward.needs_originals}
        )

    def do_POST(self) -> None:
        if not self.server.room.acquire(blocking=False):
            return self.send(503, {"error": "busy"}, {"Retry-After": str(COME_AGAIN)})
        try:
            self.send(200, self.server.answer(self.read()))
        except Refused as refused:
            self.send(refused.status, {"error": str(refused)})
        except Exception as error:  # of the model: the server stays
            warnings.warn(f"{type(error).__name__}: {error}", stacklevel=2)
            self.send(500, {"error": type(error).__name__})
        finally:
            self.server.room.release()

    def read(self) -> Any:
        """The JSON of the request; what a page in a browser could send unasked is none."""
        if self.path != PATH:
            raise Refused(404, f"POST {PATH}")
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.token is not None and not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise Refused(401, "the token is missing or wrong")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "Content-Type must be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "Content-Length is missing")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"at most {MOST_BYTES} bytes: lower batch_size")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"not JSON: {error}") from error

    def send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        if status != 200:  # the rest of a request may be unread
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing for each request; errors are warned of."""


def inputs_of(request: Any, reward: Reward) -> RewardInput:
    """Raises Refused where the request lacks something, or its lists differ in length."""
    if not isinstance(request, dict):
        raise Refused(400, "a request is an object")
    texts = listed_in(request, "captions", None)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "captions must be a list of texts, at least one")
    drawn = pictures_in(request, "images", len(texts))
    originals = torch.zeros(len(texts), 3, 0, 0)
    if reward.needs_originals:
        if "originals" not in request:
            raise Refused(422, f"{type(reward).__name__} compares with originals: set sends_originals of HttpReward")
        originals = pictures_in(request, "originals", len(texts))
    metadata = None
    if "metadata" in request:
        metadata = [row or {} for row in listed_in(request, "metadata", len(texts))]
    return RewardInput(originals, drawn, texts, metadata=metadata)


def listed_in(request: dict[str, Any], name: str, count: int | None) -> list:
    found = request.get(name)
    if not isinstance(found, list) or count not in (None, len(found)):
        raise Refused(400, f"{name} must be a list{'' if count is None else f' of {count}, one for each caption'}")
    return found


def pictures_in(request: dict[str, Any], name: str, count: int) -> Tensor:
    """[N, 3, H, W] in [0, 1]; raises Refused where they are no pictures, or not of one size."""
    pictures = [picture_in(text, name) for text in listed_in(request, name, count)]
    if len({picture.shape for picture in pictures}) > 1:
        raise Refused(400, f"{name} must be of one size")
    return torch.stack(pictures)


def picture_in(text: Any, name: str) -> Tensor:
    """PNG in base64 -> [3, H, W] in [0, 1]."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Refused(413, f"a picture of {name} has more than {MOST_PIXELS} pixels")
            levels = np.array(image.convert("RGB"))
    except (binascii.Error, TypeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(400, f"{name} must be PNG files in base64 ({type(error).__name__})") from error
    return torch.from_numpy(levels).permute(2, 0, 1).float() / 255


def on(device: torch.device, inputs: RewardInput) -> RewardInput:
    moved = inputs.originals.to(device), inputs.reconstructions.to(device)
    return RewardInput(*moved, inputs.captions, metadata=inputs.metadata)


def listed(values: Tensor) -> list[float | None]:
    """[n] -> numbers, None where it is none."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
