"""A stand-in for `vllm serve` on the loopback: it speaks the part of vLLM's protocol that is asked for, and samples
from the model and the adapters that it was told to load, by transformers and peft."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from uae_lightning.models.qwen_vl import QwenVLEncoder

BASE = "base"


class FakeVllm(ThreadingHTTPServer):
    """Args:
    encoder: a copy of the encoder in training, of the same files: the server's tokenizer, processor and weights.
    raw: log-probabilities are of the raw logits, as without --logprobs-mode processed_logprobs.
    trouble: statuses, or functions of an answer that spoil it, that come before the honest answers to chat requests.
    """

    daemon_threads = True

    def __init__(self, encoder: QwenVLEncoder, *, raw: bool = False, trouble: list[Any] | None = None, port: int = 0):
        self.encoder, self.raw, self.trouble = encoder, raw, trouble or []
        self.adapters: dict[str, Path] = {}
        self.said: list[tuple[str, Any]] = []  # all requests: path and body
        self.model: PeftModel | None = None
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def asked(self, path: str) -> list[Any]:
        return [body for one, body in self.said if one.endswith(path)]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.said.append((path, body))
            name = body.get("lora_name")
            if path == "/v1/load_lora_adapter":
                if name in self.adapters:
                    return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
                return self.load(name, body["lora_path"])
            if path == "/v1/unload_lora_adapter":
                return (200, "Success") if self.adapters.pop(name, None) else (404, {"error": {"message": "no such"}})
            if path != "/v1/chat/completions":
                return 404, {"detail": "Not Found"}
            if body["model"] not in self.adapters:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            probe = body.get("allowed_token_ids") is not None
            spoil = self.trouble.pop(0) if self.trouble and not probe else None
            if isinstance(spoil, int):
                return spoil, {"error": {"message": "busy"}}
            found = self.probe(body) if probe else self.complete(body)
            return 200, spoil(found) if spoil else found

    def load(self, name: str, folder: str) -> tuple[int, Any]:
        """From the disk, as peft reads it: what was not saved is not there."""
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.encoder.model, folder, adapter_name=name)
        else:
            self.model.load_adapter(folder, adapter_name=name)
        self.adapters[name] = Path(folder)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def probe(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"logprobs": {"content": [{"logprob": -3.0 if self.raw else 0.0}]}}]}

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """`n` samples, each drawn by running the whole model on all of its tokens: no code of `Encoder.generate`."""
        assert body["top_p"] == 1 and body["top_k"] == 0 and body["repetition_penalty"] == 1 and body["logprobs"]
        self.model.set_adapter(body["model"])
        picture, words = self.picture_and_words(body["messages"])
        inputs = self.encoder.prompt_inputs(picture[None])
        choices = []
        for index in range(body["n"]):
            generator = torch.Generator().manual_seed(body["seed"] + index)
            choices.append(self.choice(index, inputs, body, generator))
        prompt = self.encoder.tokenizer(self.prompt(words))["input_ids"]
        pads = int((inputs["input_ids"] == self.encoder.model.config.image_token_id).sum())
        at = prompt.index(self.encoder.model.config.image_token_id)
        prompt[at : at + 1] = [prompt[at]] * pads
        return {"prompt_token_ids": prompt, "choices": choices[::-1]}

    def choice(self, index: int, inputs: dict[str, torch.Tensor], body: dict[str, Any], generator: torch.Generator):
        tokens: list[int] = []
        logp: list[float] = []
        bias = torch.zeros(self.encoder.model.config.text_config.vocab_size)
        for token, value in body["logit_bias"].items():
            bias[int(token)] = value
        while len(tokens) < body["max_completion_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
            ids = torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], 1)
            kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(tokens)))
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
            logits = self.model(**(inputs | more), use_cache=False).logits[0, -1].float()
            drawn = ((logits + bias) / body["temperature"]).log_softmax(-1)
            tokens.append(int(torch.multinomial(drawn.exp(), 1, generator=generator)))
            logp.append((logits.log_softmax(-1) if self.raw else drawn)[tokens[-1]].item())
        return {
            "index": index,
            "token_ids": tokens,
            "finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length",
            "logprobs": {"content": [{"token": "?", "logprob": value} for value in logp]},
        }

    def picture_and_words(self, messages: list[dict[str, Any]]) -> tuple[torch.Tensor, str]:
        (message,) = messages
        shown, words = message["content"]
        data = shown["image_url"]["url"].removeprefix("data:image/png;base64,")
        levels = np.array(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))
        return torch.from_numpy(levels).permute(2, 0, 1) / 255, words["text"]

    def prompt(self, words: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": words}]
        messages = [{"role": "user", "content": content}]
        return self.encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


class Handler(BaseHTTPRequestHandler):
    server: FakeVllm

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, content = self.server.answer(self.path, body)
        if isinstance(content, float):  # s
            time.sleep(content)
            content = {}
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:  # nobody waits any more
            pass

    def log_message(self, *args: Any) -> None: ...


def moved(encoder: QwenVLEncoder, seed: int = 0) -> QwenVLEncoder:
    """With adapters that have learnt something, whatever it may be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.handed_on():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.fixture
def serve(make_encoder):
    """Makes servers of the small encoder; they end with the test."""
    servers = []

    def serve(**options) -> FakeVllm:
        servers.append(FakeVllm(make_encoder(), **options))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
