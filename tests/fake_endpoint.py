"""A server on the loopback that answers as it is told: in order, and then always as the last time."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from uae_lightning.types import RewardInput


class Fake(ThreadingHTTPServer):
    """Args: answers: what `send` takes, or a function of the request that gives it."""

    daemon_threads = True

    def __init__(self, *answers: dict[str, Any] | Callable[[dict], Any]) -> None:
        self.answers, self.requests, self.headers, self.lock = list(answers), [], [], threading.Lock()
        self.under_way, self.most = 0, 0  # requests at a time
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        self.shutdown()  # a loop over a socket that is closed would spin until the process ends
        super().server_close()

    def next(self, request: dict, headers: dict) -> dict[str, Any]:
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else answer


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        fake = self.server
        with fake.lock:
            fake.under_way += 1
            fake.most = max(fake.most, fake.under_way)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"status": 200, "headers": {}, "body": {}, "after": 0.0} | fake.next(body, dict(self.headers))
        time.sleep(answer["after"])
        with fake.lock:
            fake.under_way -= 1
        if answer["status"] == 0:  # the line goes dead
            self.close_connection = True
            return
        content = answer["body"] if isinstance(answer["body"], bytes) else json.dumps(answer["body"]).encode()
        self.send_response(answer["status"])
        for name, value in (answer["headers"] | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:  # nobody waits any more
            pass

    def log_message(self, *args: Any) -> None: ...


def brightness(request: dict, **more: Any) -> dict[str, Any]:
    """An honest server: the mean of each picture, and the length of its caption."""
    scores = [float(np.array(decoded(image)).mean() / 255) for image in request["images"]]
    return {"body": {"scores": scores, "parts": {"letters": [len(text) for text in request["captions"]]}}} | more


# ----------------------------------------------------------------------------------------- as vLLM and OpenAI speak


def tokens(**probabilities: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(value)} for token, value in probabilities.items()]
    return {"body": {"choices": [{"logprobs": {"content": [{"token": top[0]["token"], "top_logprobs": top}]}}]}}


def says(text: str | None) -> dict[str, Any]:
    return {"body": {"choices": [{"message": {"role": "assistant", "content": text}}]}}


def text_in(request: dict) -> str:
    """What a chat is asked by its user."""
    return "".join(part["text"] for part in request["messages"][-1]["content"] if part["type"] == "text")


def picture_in(request: dict) -> Image.Image:
    parts = [part for part in request["messages"][-1]["content"] if part["type"] == "image_url"]
    return decoded(parts[0]["image_url"]["url"].removeprefix("data:image/png;base64,"))


# ------------------------------------------------------------------------------------------------ pictures


def decoded(image: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image)), formats=["PNG"])


def levels(count: int, side: int = 4) -> torch.Tensor:
    """[N, 3, side, side]: gray pictures of rising brightness, whole steps of 255."""
    return (torch.arange(count) * 10 / 255)[:, None, None, None].expand(-1, 3, side, side).clone()


def inputs_of(count: int, **more: Any) -> RewardInput:
    return RewardInput(torch.zeros(count, 3, 0, 0), levels(count), [f"text {row}" for row in range(count)], **more)
