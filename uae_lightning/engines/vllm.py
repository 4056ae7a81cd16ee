"""VllmEngine: captions written by `vllm serve`, which is shown the adapter anew whenever it has changed.

    POST /v1/load_lora_adapter    {"lora_name", "lora_path"}: before a rollout, under a name that was never used
    POST /v1/chat/completions     {"model": that name, "messages", "n": G, ...}: one request for each picture
    POST /v1/unload_lora_adapter  {"lora_name"}: the one before

Read in vLLM 0.32 (entrypoints/serve/lora, entrypoints/openai/chat_completion/protocol.py, v1/sample/sampler.py): what
`return_token_ids` adds are `prompt_token_ids` and each choice's `token_ids`; log-probabilities are those of the
distribution that was drawn from with `--logprobs-mode processed_logprobs` alone; and blocks of the prefix cache are
known by name and path of their adapter (v1/core/kv_cache_utils.py), so that other weights under an old name would be
continued from states of the old ones.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import math
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from uae_lightning.interfaces import Engine, ServedEncoder
from uae_lightning.parallel.collectives import RaisedTogether, barrier, gathered, rank
from uae_lightning.parallel.sharding import whole_on_main
from uae_lightning.ranges import Count, Positive, checked
from uae_lightning.remote.endpoint import Endpoint, NoAnswer, NotAsAsked, Refused, concurrently
from uae_lightning.remote.pictures import as_png
from uae_lightning.types import Captions, CaptionTurn
from uae_lightning.usage import UsageError

Found = TypeVar("Found")
Said = tuple[list[int], list[float]]  # tokens of a caption and their log-probabilities

NEVER = -100.0  # added to a logit: the most that vLLM allows
ROUNDING = 1e-3  # by which a log-probability may be off 0, or above it
AS_THEY_ARE = {  # what generation_config.json of the model would otherwise change
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0
}  # fmt: skip


@checked
class VllmEngine(Engine):
    """Captions from a vLLM server that serves the encoder's weights, with the adapter that is being trained.

    Pictures go as PNG of the size to which the encoder itself would scale them, so that the server's own resizing
    leaves them alone. The server's prompt is held against the encoder's, token by token.

    Args:
        url: of the API, such as http://127.0.0.1:8000/v1; or a list: each rank asks one of them, in turn.
        folder: in which the adapter is saved for the servers to read; on several machines one that all of them see.
        api_key_env: name of the environment variable that holds the server's key; None sends none.
        timeout: seconds that a request may take: a picture's whole group of captions, or loading an adapter.
        attempts: at most, for each request; between them are 0.5, 1, 2, ... s, or what the server asks for.
        concurrency: requests of each rank under way at a time.

    Raises:
        UsageError: a URL is none, or there is no such variable.
    """

    def __init__(
        self,
        url: str | list[str],
        folder: str = "runs/adapters",
        api_key_env: str | None = None,
        timeout: Positive = 600.0,
        attempts: Count = 5,
        concurrency: Count = 64,
    ) -> None:
        if not url:
            raise UsageError("VllmEngine: `url` names no server: write http://HOST:PORT/v1")
        urls = [url] if isinstance(url, str) else url
        self.urls = [one.rstrip("/").removesuffix("/chat/completions") for one in urls]
        make = functools.partial(Endpoint, "VllmEngine", api_key_env=api_key_env, timeout=timeout, attempts=attempts)
        self.endpoints = {
            path: [make(f"{one}/{path}") for one in self.urls]
            for path in ("chat/completions", "load_lora_adapter", "unload_lora_adapter")
        }
        self.folder, self.concurrency = Path(folder), concurrency
        self.token = secrets.randbits(48)  # of this run: servers outlive runs, and remember names
        self.loads, self.name, self.digest, self.saved = 0, "", b"", None

    def write(
        self,
        encoder: ServedEncoder,
        images: Tensor,
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> Captions:
        """As `interfaces.Engine` has it. The same seed asks for the same captions; what else a server computes together
        with them can change their rounding, and with it a token.

        Raises:
            RaisedTogether: a server of any rank was away, busy or wrong in all attempts.
            UsageError: a server that is not started as it must be, or serves other weights' text.
        """
        turn = encoder.turn(images)
        self.bring_up_to_date(encoder, turn, images.device)
        sampling = {"n": samples, "temperature": temperature, "max_completion_tokens": max_new_tokens}

        def ask(row: int) -> list[Said]:
            body = sampling | {"seed": seed + row * samples, "messages": with_picture(turn, images[row])}
            return self.post("chat/completions", self.request(turn) | body, lambda found: read(found, turn, body))

        answers = self.together(lambda: concurrently(ask, [*range(len(images))], self.concurrency), images.device)
        said = [one for answer in answers for one in answer]
        return encoder.captions_of([tokens for tokens, _ in said], [logp for _, logp in said])

    def request(self, turn: CaptionTurn) -> dict[str, Any]:
        """What all requests for captions have in common."""
        return AS_THEY_ARE | {
            "model": self.name,
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": turn.ends,
            "logit_bias": {str(token): NEVER for token in turn.never},
        }

    # ------------------------------------------------------------------------------------------------ the adapter

    def bring_up_to_date(self, encoder: ServedEncoder, turn: CaptionTurn, device: torch.device) -> None:
        """Each server gets the adapter as it is now: rank 0 saves it, the first rank of each server loads it there."""
        digest = digest_of(encoder)
        news = gathered(torch.tensor([[digest != self.digest, self.token]], device=device))
        if not news[:, 0].any():
            return
        self.loads, old = self.loads + 1, self.name
        name = f"uae-{news[0, 1]:x}-{self.loads}"
        saved = (self.folder / name).absolute()
        with whole_on_main(encoder, encoder.handed_on()):
            if rank() == 0:
                encoder.save_adapter(saved)
        barrier()
        self.together(lambda: self.load(name, saved, turn) if rank() < len(self.urls) else None, device)
        self.name, self.digest = name, digest
        if old and rank() < len(self.urls):
            self.unload(old)
        if rank() == 0:
            self.keep_one(saved)

    def load(self, name: str, folder: Path, turn: CaptionTurn) -> None:
        needed = (
            "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, --enable-lora and --max-lora-rank "
            f"of at least the adapter's rank, where {folder} can be read"
        )
        try:
            self.post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, str, text=True)
        except Refused as error:
            if "already been loaded" not in error.said:  # by an attempt whose answer was lost
                told = f"VllmEngine: {self.url} does not load the adapter ({error.said}): {needed}"
                raise UsageError(told) from error
        except NoAnswer as error:
            raise NoAnswer(f"{error}; {needed}") from error
        if self.loads == 1:
            self.check_logprobs(name, turn)

    def check_logprobs(self, name: str, turn: CaptionTurn) -> None:
        """Raises UsageError where they are of the raw logits. A token that is the only one allowed is certain."""
        body = {"messages": [{"role": "user", "content": "?"}], "max_completion_tokens": 1, "temperature": 1.0}
        only = {"model": name, "allowed_token_ids": turn.ends[:1], "logit_bias": None}
        logp = self.post(
            "chat/completions",
            self.request(turn) | body | only,
            lambda found: float(found["choices"][0]["logprobs"]["content"][0]["logprob"]),
        )
        if abs(logp) > ROUNDING:
            raise UsageError(
                f"VllmEngine: {self.url} tells log-probabilities of raw logits, not of what it draws from: start it "
                "with --logprobs-mode processed_logprobs"
            )

    def unload(self, name: str) -> None:
        try:
            self.post("unload_lora_adapter", {"lora_name": name}, str, text=True)
        except (NoAnswer, Refused) as error:  # it was started anew, and nothing depends on it
            warnings.warn(f"VllmEngine: an adapter that is out of date was not unloaded ({error})", stacklevel=2)

    def keep_one(self, folder: Path) -> None:
        """Removes the adapter before, and with the process also the last."""
        if self.saved is None:
            atexit.register(lambda: shutil.rmtree(self.saved, ignore_errors=True))
        else:
            shutil.rmtree(self.saved, ignore_errors=True)
        self.saved = folder

    # ------------------------------------------------------------------------------------------------ servers

    @property
    def place(self) -> int:
        return rank() % len(self.urls)

    @property
    def url(self) -> str:
        """Of this rank's server."""
        return self.urls[self.place]

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], Found], *, text: bool = False) -> Found:
        return self.endpoints[path][self.place].post(body, read, text=text)

    def together(self, work: Callable[[], Found], device: torch.device) -> Found:
        """What `work` gives; where a server had no answer for any of the ranks, all of them raise RaisedTogether."""
        trouble, found = "", None
        try:
            found = work()
        except NoAnswer as error:
            trouble = str(error)
        if gathered(torch.tensor([bool(trouble)], device=device)).any():
            raise RaisedTogether(
                f"VllmEngine: {trouble or 'the server of another rank has no answer'}. When it answers, continue with "
                "--resume"
            )
        return found  # type: ignore[return-value]


def digest_of(encoder: ServedEncoder) -> bytes:
    """Of the adapters, as far as this rank holds them."""
    hashed = hashlib.blake2b(digest_size=16)
    for parameter in encoder.handed_on():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        hashed.update(own.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.digest()


def with_picture(turn: CaptionTurn, image: Tensor) -> list[dict[str, Any]]:
    """The turns with a picture [3, H, W] where it belongs, as the OpenAI API writes it."""
    url = f"data:image/png;base64,{as_png(image)}"
    shown = {"type": "image_url", "image_url": {"url": url}}

    def filled(content: Any) -> Any:
        return content if isinstance(content, str) else [shown if part["type"] == "image" else part for part in content]

    return [message | {"content": filled(message["content"])} for message in turn.messages]


def read(answer: Any, turn: CaptionTurn, asked: dict[str, Any]) -> list[Said]:
    """The captions of one picture.

    Raises:
        NotAsAsked, KeyError, TypeError: it is no answer to what was asked; another attempt may have one.
        UsageError: it never will be.
    """
    check_prompt(answer.get("prompt_token_ids"), turn)
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if len(choices) != asked["n"]:
        raise NotAsAsked(f"{len(choices)} captions in place of {asked['n']}")
    return [read_choice(choice, turn, asked["max_completion_tokens"]) for choice in choices]


def check_prompt(tokens: list[int] | None, turn: CaptionTurn) -> None:
    """Raises UsageError where the server read another prompt than the encoder does."""
    if tokens is None or tokens == turn.tokens:
        return
    at = next((i for i, pair in enumerate(zip(tokens, turn.tokens, strict=False)) if pair[0] != pair[1]), "the end")
    raise UsageError(
        f"VllmEngine: the server's prompt has {len(tokens)} tokens, the encoder's {len(turn.tokens)}, and they differ "
        f"at {at}: serve the weights that model.autoencoder.encoder.path names, with their own chat template and "
        "preprocessor_config.json, with --chat-template-content-format openai and, where pictures differ in size, with "
        f"--mm-processor-kwargs '{json.dumps(turn.processor)}'"
    )


def read_choice(choice: dict[str, Any], turn: CaptionTurn, limit: int) -> Said:
    tokens, why = choice.get("token_ids"), choice["finish_reason"]
    if tokens is None:
        raise UsageError("VllmEngine: the server tells no token ids: take vLLM of 0.10.2 or later (`return_token_ids`)")
    logp = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    if len(tokens) != len(logp) or not tokens:
        raise NotAsAsked(f"{len(tokens)} tokens and {len(logp)} log-probabilities")
    if not all(math.isfinite(value) and value <= ROUNDING for value in logp):
        raise NotAsAsked("log-probabilities that are none")
    if why == "stop" and tokens[-1] not in turn.ends:
        raise UsageError(
            f"VllmEngine: the server ends a caption with token {tokens[-1]}, which is no end of text: start it with "
            "--generation-config vllm"
        )
    if why == "length" and len(tokens) < limit:
        raise UsageError(
            f"VllmEngine: the server cuts captions after {len(tokens)} tokens, before model.autoencoder.captioning."
            f"max_new_tokens ({limit}): start it with --max-model-len of at least {len(turn.tokens) + limit}"
        )
    if why not in ("stop", "length") or len(tokens) > limit:
        raise NotAsAsked(f"a caption of {len(tokens)} tokens that ended by {why!r}")
    return tokens, logp
