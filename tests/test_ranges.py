import math
import pickle

import pytest
import yaml

from callbacks import EMA, PolicyHealth, SampleGallery, Throughput
from uae_lightning.autoencoder import Captioning
from uae_lightning.models.projector import MLPProjector
from uae_lightning.ranges import Count, Limit, Natural, OutOfRange, Seed, ShareBelow1
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.run.stage_checks import check_training
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.types import LoRA, Sampling
from uae_lightning.usage import UsageError


@pytest.mark.parametrize(
    ("of", "good", "bad"),
    [
        (Count, [1, "7", 2.0, 2**31 - 1], [0, -1, 1.5, "1.5", "", "x", None, True, math.nan, math.inf, 2**31]),
        (Natural, [0, 3], [-1]),
        (Seed, [0, 2**32 - 1], [-1, 2**32]),
        (Limit, [1e-9, math.inf], [0, -1, math.nan, None]),
        (ShareBelow1, [0, 0.5], [1, 1.5, -0.1]),
    ],
)
def test_a_range_reads_plain_numbers_and_refuses_all_else(of, good, bad):
    # red with `<` and `<=` exchanged in a range; with a subclass of int in place of int, which yaml cannot write
    for value in good:
        number = of(value)
        assert number == float(value) and type(number) in (int, float)
        assert pickle.loads(pickle.dumps(number)) == yaml.safe_load(yaml.safe_dump(number)) == number
    for value in bad:
        with pytest.raises(OutOfRange, match="must be .*, got "):
            of(value)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Captioning(temperature=math.nan), "temperature"),
        (lambda: Captioning(max_new_tokens=-5), "max_new_tokens"),
        (lambda: Sampling(0), "steps"),
        (lambda: Sampling(guidance=-5.0), "guidance"),
        (lambda: LoRA(rank=0), "rank"),
        (lambda: EMA(every=0), "every"),
        (lambda: PolicyHealth(math.nan), "max_log_ratio"),
        (lambda: SampleGallery(pictures=0), "pictures"),
        (lambda: Throughput(0), "window"),
        (lambda: MLPProjector(None, 0), "input_size"),
        (lambda: WeightedSum({"a": PixelSimilarity()}, {"a": math.nan}), "weights.a"),
        (lambda: DecoderRL(None, group_size=1), "group_size"),
        (lambda: DecoderRL(None, max_grad_norm=0.0), "max_grad_norm"),  # of a base class
    ],
)
def test_classes_called_from_python_refuse_them_too(make, name):
    # red without @checked above the class
    with pytest.raises(ValueError, match=f"{name} must be .*, got "):
        make()


@pytest.mark.parametrize(
    ("stage", "option", "words"),
    [
        ("encoder_rl", "model.init_args.max_grad_norm=-1", ["model.init_args.max_grad_norm", "above 0", "-1"]),
        ("encoder_rl", "model.learn.encoder.rank=0", ["model.init_args.learn.encoder.rank (LoRA)"]),
        ("decoder_pretrain", "model.init_args.condition_dropout=2", ["condition_dropout", "below 1", "'2'"]),
        ("decoder_rl", "model.autoencoder.sampling.steps=0", ["init_args.sampling.steps (AutoEncoder)", "from 1"]),
        ("decoder_rl", "model.init_args.optimizer.init_args.lr=0", ["optimizer.init_args.lr", "above 0"]),
        ("decoder_rl", "trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches", "from 1"]),
        ("decoder_rl", "trainer.val_check_interval=0", ["trainer.val_check_interval", "above 0"]),
        ("decoder_rl", "trainer.max_time=words", ["trainer.max_time", "DD:HH:MM:SS"]),
        ("decoder_rl", 'trainer.max_time={"a": 1}', ["trainer.max_time", "'a' is an invalid keyword"]),
        ("decoder_rl", "trainer.gradient_clip_val=1", ["trainer.gradient_clip_val", "model.init_args.max_grad_norm"]),
        ("decoder_rl", "seed_everything=-7", ["seed_everything", "from 0"]),
    ],
)
def test_a_parsed_stage_names_option_value_and_range(stage, option, words):
    # red without the call of check_fit, or without `explained`
    with pytest.raises(UsageError) as error:
        parse_stage(["fit", f"--config=conf/scenes/{stage}.yaml", f"--{option}"])
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 200, error.value


@pytest.mark.parametrize(
    ("stage", "option", "words"),
    [
        ("encoder_rl", "model.autoencoder.captioning.temperature=0", "captioning.temperature must be above 0"),
        ("decoder_rl", "model.init_args.window=[2,5]", "window must lie within the 3 sampling steps"),
        ("decoder_rl", "model.init_args.noise_level=1.5", "noise_level must not exceed 1 with sde 'cps'"),
        ("decoder_rl", "trainer.val_check_interval=null", "trainer.val_check_interval must be a number of steps"),
    ],
)
def test_options_that_train_nothing_together(stage, option, words):
    # red with `> 0` in place of `== 0`; a command that trains nothing may have them (`generate --steps 1`)
    cli = parse_stage(["fit", f"--config=conf/scenes/{stage}.yaml", f"--{option}"])
    with pytest.raises(UsageError, match=words):
        check_training(cli.config.fit)
