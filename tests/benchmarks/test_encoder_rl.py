"""What the benchmark of EncoderRL compares is the same; TRL is not needed for this."""

from __future__ import annotations

import pytest
import torch

from benchmarks import encoder_rl
from benchmarks.caption_steps import all_tokens_allowed, own_result, plain_result
from benchmarks.encoder_rl import differences
from uae_lightning.usage import UsageError

SMALL = ["--pictures", "2", "--group", "2", "--tokens", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    options = encoder_rl.parse([*SMALL, "--micro-batch", "2", "--kl-beta", "0.5"])
    return encoder_rl.build(options, tmp_path_factory.mktemp("work"), torch.device("cpu"))[0], options


def test_own_step_equals_a_plain_loop(own):
    # red if the plain loop leaves out the reference, or scales rewards by the batch
    step, options = own
    captions = step.generation()
    assert captions.mask.all() and captions.tokens.shape == (4, 5)  # forced length
    with all_tokens_allowed(step.encoder):
        result, plain = own_result(step, captions), plain_result(step, captions, options)
    found = differences(result, plain)
    encoder_rl.check_equal("a plain loop", found, "float32")
    assert result.loss != 0 and max(gradient.abs().max() for gradient in plain.gradients.values()) > 1e-4
    assert not any(parameter.grad is not None for parameter in step.parameters())


def test_a_difference_is_refused(own):
    # red if `differences` compares a result with itself, or `<=` is turned round
    step, options = own
    captions = step.generation()
    with all_tokens_allowed(step.encoder):
        result = own_result(step, captions)
        step.policy.kl_beta = 0.0
        other = own_result(step, captions)
        step.policy.kl_beta = options.kl_beta
    with pytest.raises(ValueError, match="differ in loss and gradients"):
        encoder_rl.check_equal("another", differences(result, other), "float32")


def test_a_given_caption_is_not_sampled_again(own):
    # red if `given` is ignored: "loss" would time generation too
    step, _ = own
    step.given = step.generation()
    step.encoder.generate, generate = None, step.encoder.generate
    step.step()
    assert step.sampled is step.given
    step.encoder.generate, step.given = generate, None


def test_presets_fill_in_what_is_not_given():
    # red if defaults are set after the options were read
    assert (
        vars(encoder_rl.parse(["--preset", "image448"])).items()
        >= {"side": 448, "tokens": 64, "micro_batch": 8}.items()
    )
    assert encoder_rl.parse(["--preset", "image448", "--tokens", "3"]).tokens == 3
    with pytest.raises(UsageError, match="micro-batch"):
        encoder_rl.parse(["--micro-batch", "5"])
    with pytest.raises(UsageError, match="--preset"):
        encoder_rl.parse(["--preset-", "demo"])
