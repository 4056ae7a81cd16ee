"""A reward behind a real server on the loopback, which is killed in the middle of a step and brought back."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import small_stages as small
import torch

from callbacks import RewardCallback, StageCheckpoint
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.parallel.collectives import RaisedTogether
from uae_lightning.remote import endpoint
from uae_lightning.rewards.http_reward import HttpReward
from uae_lightning.scenes.prompt_data import ScenePromptData
from uae_lightning.stages.decoder_rl import DecoderRL

make_stage = small.make_stage
ROOT = Path(__file__).parents[2]
SERVER = """
import sys, time
from pathlib import Path
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.serving import RewardServer
from uae_lightning.types import RewardOutput

class Redness(Reward):
    needs_originals = False

    def forward(self, inputs):
        seen = Path(sys.argv[2])
        seen.write_text(str(int(seen.read_text() if seen.exists() else 0) + 1))
        time.sleep(0.2)
        total = inputs.reconstructions[:, 0].mean((1, 2))
        return RewardOutput(total, {"redness": total})

with RewardServer(Redness(), ("127.0.0.1", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


class Served:
    """The server in a process of its own; `seen` is how many requests have reached the reward."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.seen, self.url = folder / "seen", f"http://127.0.0.1:{self.port}/score"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.port), str(self.seen)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def requests(self) -> int:
        return int((self.seen.read_text() or "0") if self.seen.exists() else 0)


@contextmanager
def killed_at(server: Served, request: int, back: bool = True):
    """Kills it while it judges that request, and starts it again where it is to come back."""

    def watch() -> None:
        while server.requests() < request:
            time.sleep(0.005)
        server.kill()
        if back:
            server.start()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(60)


def fit(stage, folder: Path, reward: HttpReward, steps: int = 2) -> dict[str, torch.Tensor]:
    saver, last = StageCheckpoint(folder, "last", every_n_train_steps=100), folder / "last.ckpt"
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, accelerator="cpu", plugins=[AtomicCheckpointIO()],
        callbacks=[RewardCallback(reward), saver],
    )  # fmt: skip
    data = ScenePromptData(batch_size=2)
    trainer.fit(stage, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    return {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Served(tmp_path_factory.mktemp("server"))
    yield found
    found.kill()


@pytest.mark.filterwarnings("ignore:.*")
def test_a_server_killed_in_the_middle_of_a_step_changes_nothing(make_stage, server, tmp_path, monkeypatch):
    # red if a broken connection is final, if a reward that was not given counts as 0, or if the run that stops leaves
    # no checkpoint of its last whole batch
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 1.0)
    torch.manual_seed(0)
    stage = make_stage(DecoderRL)
    start = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    patient = {"batch_size": 4, "concurrency": 2, "attempts": 100, "cache": 0}
    expected = fit(stage, tmp_path / "straight", HttpReward(server.url, **patient))
    assert server.requests() == 4  # two steps of eight pictures

    stage.load_state_dict(start)
    with killed_at(server, 5):
        found = fit(stage, tmp_path / "killed", HttpReward(server.url, **patient))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert server.requests() > 8  # some were judged twice

    stage.load_state_dict(start)
    with (
        killed_at(server, server.requests() + 3, back=False),
        pytest.raises(RaisedTogether, match="go on with --resume"),
    ):
        fit(stage, tmp_path / "stopped", HttpReward(server.url, **patient | {"attempts": 2}))
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 1
    server.start()
    resumed = fit(stage, tmp_path / "stopped", HttpReward(server.url, **patient))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())


@pytest.mark.filterwarnings("ignore:.*")
def test_a_server_that_stays_away_costs_groups_where_it_may(make_stage, tmp_path):
    # red if the callback does not ask the reward, or a failure moves the weights
    stage = make_stage(DecoderRL, kl_beta=0.0)
    before = {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}
    gone = HttpReward("http://127.0.0.1:9/score", attempts=1, on_failure="skip_group")
    stage.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    after = fit(stage, tmp_path, gone, steps=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert stage.health["skipped_groups"] == 2.0
