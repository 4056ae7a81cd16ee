"""Encoder RL on captions that an engine wrote: what becomes of its log-probabilities, and of a run with a server."""

from __future__ import annotations

import dataclasses

import pytest
import served_captions
import small_stages as small
import torch

from callbacks import PolicyHealth
from uae_lightning.engines.vllm import VllmEngine
from uae_lightning.interfaces import Engine
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.policies.captions import CaptionGRPO
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.encoder_rl import EncoderRL

make_stage, serve, moved = small.make_stage, served_captions.serve, served_captions.moved


class Nearby(Engine):
    """The encoder itself, whose log-probabilities are off by a constant where one is asked for."""

    def __init__(self, off: float | None) -> None:
        self.off = off

    def write(self, encoder, images, **how):
        said = encoder.generate(images, **how)
        logp, _ = encoder.token_logprobs(encoder.see(images), said, temperature=how["temperature"])
        return dataclasses.replace(said, logp=None if self.off is None else logp + self.off)


def loss_of(stage: EncoderRL, off: float | None, **options) -> tuple[torch.Tensor, dict]:
    policy = CaptionGRPO(stage.autoencoder, engine=Nearby(off), micro_batch=8, **options)
    stage.batches_seen.fill_(1)
    with torch.no_grad():
        acts = policy.act(next(iter(ScenesData(batch_size=2).train_dataloader())).images, stage)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(2)
    return policy.loss(acts, torch.arange(8), 0, advantages, first=True)


def test_the_loss_is_weighed_where_the_engine_s_log_probabilities_differ(make_stage):
    # red if the weights are not multiplied with the loss, or are where nobody knows log-probabilities; if the KL or the
    # entropy is weighed as well; or if equal log-probabilities change a bit
    stage = make_stage(EncoderRL)
    moved(stage.encoder)
    plain, _ = loss_of(stage, None, kl_beta=0.0)
    same, figures = loss_of(stage, 0.0, kl_beta=0.0)
    assert torch.equal(plain, same) and figures["sampler_log_ratio_max"] == 0 == figures["sampler_truncated"]
    lower, figures = loss_of(stage, 0.25, kl_beta=0.0)  # the sampler found the tokens likelier: they count less
    torch.testing.assert_close(lower, plain * torch.tensor(-0.25).exp())
    assert figures["sampler_log_ratio_mean"].item() == pytest.approx(0.25, abs=1e-5)
    higher, figures = loss_of(stage, -5.0, kl_beta=0.0)
    assert torch.equal(higher, plain * 2) and figures["sampler_truncated"] == 1 and "first_log_ratio_max" not in figures
    torch.testing.assert_close(loss_of(stage, -5.0, kl_beta=0.0, sampler_limit=3.0)[0], plain * 3)
    with_kl = {"kl_beta": 0.1, "entropy_bonus": 0.1}
    torch.testing.assert_close(loss_of(stage, -5.0, **with_kl)[0] - higher, loss_of(stage, None, **with_kl)[0] - plain)


def test_encoder_rl_trains_on_a_server_s_captions(make_stage, serve, tmp_path):
    # red if the server keeps the adapter of an earlier step (|log ratio| is then far above rounding), or rollouts are
    # written by the encoder
    server, watch = serve(), small.Watch()
    stage = make_stage(EncoderRL, engine=VllmEngine(server.url, str(tmp_path)))
    stage.captioning.max_new_tokens = 5
    before = small.snapshot(stage)
    small.fit(stage, 3, [watch, PolicyHealth()])
    assert all(row["sampler_log_ratio_max"] < 1e-3 and row["sampler_truncated"] == 0 for row in watch.rows)
    assert len(server.asked("/load_lora_adapter")) == 3 and len(server.asked("completions")) == 1 + 3 * 2
    assert any(not torch.equal(tensor, before[name]) for name, tensor in small.snapshot(stage).items())


def test_a_server_of_other_weights_stops_the_run(make_stage, serve, tmp_path):
    # red if nobody looks at the mismatch
    server = serve()
    with torch.no_grad():
        for parameter in server.encoder.parameters():
            parameter.mul_(1.5)
    stage = make_stage(EncoderRL, engine=VllmEngine(server.url, str(tmp_path)))
    stage.captioning.max_new_tokens = 3
    with pytest.raises(FloatingPointError, match="come from another policy .*max_sampler_log_ratio"):
        small.fit(stage, 1, [PolicyHealth()])


def test_an_engine_is_named_in_yaml_and_asked_nothing_by_a_plan():
    # red if the option does not reach the policy, if a plan keeps an engine to ask, or an encoder that nobody else
    # serves is found out in the first rollout
    options = ["engine=uae_lightning.engines.vllm.VllmEngine", "engine.init_args.url=http://127.0.0.1:9/v1"]
    given = [f"--model.init_args.{option}" for option in [*options, "sampler_limit=3"]]
    cli = parse_stage(["fit", "--config=conf/scenes/encoder_rl.yaml", *given])
    engine = cli.config.fit.model.init_args.engine
    assert engine.class_path == "uae_lightning.engines.vllm.VllmEngine" and engine.init_args.url.endswith(":9/v1")
    with torch.device("meta"):
        policy = cli._parser("fit").instantiate(cli.config.fit).model.policy
    assert policy.engine is None and policy.sampler_limit == 3.0


def test_an_encoder_that_nobody_else_serves_is_refused(make_stage, monkeypatch):
    # red without by_serving in CaptionGRPO
    stage = make_stage(EncoderRL)
    monkeypatch.delattr("uae_lightning.interfaces.ServedEncoder.by_serving")
    with pytest.raises(ValueError, match="QwenVLEncoder writes its captions itself: leave `engine` out"):
        CaptionGRPO(stage.autoencoder, engine=Nearby(0.0))
    assert isinstance(stage.encoder, QwenVLEncoder)
