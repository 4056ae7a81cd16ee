"""`uae serve-reward`: scores of any reward for runs on other machines, or in other processes."""

from __future__ import annotations

import os
from pathlib import Path

from uae_lightning.ranges import Count, Natural
from uae_lightning.usage import Parser, UsageError

DESCRIPTION = """\
Serves a reward over HTTP, for uae_lightning.rewards.http_reward.HttpReward of a run elsewhere: a judge on another card,
or in another environment.

    uae serve-reward --config conf/scenes/verifier.yaml                      http://127.0.0.1:8000/score
    UAE_REWARD_TOKEN=... uae serve-reward --config pick_score.yaml --host 0.0.0.0 --device cuda

The YAML has class_path and init_args. It listens on this machine alone unless --host says otherwise, and then only with
a token in the environment variable UAE_REWARD_TOKEN, which clients name with `api_key_env`. There is no encryption:
across networks put it behind a proxy that has it, or go through an SSH tunnel.
"""
TOKEN = "UAE_REWARD_TOKEN"


def main(args: list[str]) -> None:
    options = parse(args)

    from uae_lightning.rewards.serving import RewardServer
    from uae_lightning.run.loading import load_reward

    reward = load_reward(options.config, "--config")
    try:
        reward = reward.to(options.device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    try:
        server = RewardServer(reward, (options.host, options.port), os.environ.get(TOKEN), options.micro_batch)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {options.host} --port {options.port} cannot be listened on ({error})") from error
    with server:
        print(f"{type(reward).__name__} at {server.url}; Ctrl-C ends it", flush=True)
        server.serve_forever()


def parse(args: list[str]):
    from uae_lightning.remote.endpoint import is_loopback

    parser = Parser(prog="uae serve-reward", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="of the reward (needed)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=Natural, default=8000, metavar="N", help="0 is a free one; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="such as cuda or cuda:1; default: %(default)s")
    parser.add_argument("--micro-batch", type=Count, default=32, metavar="N", help="pictures at a time; default: 32")
    options = parser.parse(args)
    if options.config is None:
        parser.error("name the YAML of a reward with --config")
    if not is_loopback(options.host) and not os.environ.get(TOKEN):
        parser.error(f"--host {options.host} can be reached by others: set the environment variable {TOKEN} first")
    return options
