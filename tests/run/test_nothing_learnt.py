"""A part that a stage shall not train, said on the command line."""

import pytest

from uae_lightning.run.stage_cli import nothing_learnt, parse_stage

STAGE = ["fit", "--config=conf/scenes/decoder_pretrain.yaml"]


@pytest.mark.parametrize(
    "words",
    [["--model.learn.decoder=null"], ["--model.learn.decoder", "null"], ["--model.init_args.learn.decoder=null"]],
)
def test_nothing_is_learnt_of_a_part(words):
    # red without `nothing_learnt` in `command_line`, or with the other parts of `learn` forgotten
    learn = parse_stage([*STAGE, *words]).config.fit.model.init_args.learn
    assert learn.decoder is None and learn.projector == "all"


def test_other_words_stay_as_they_are():
    # red with a value taken for an option, or the last word lost
    words = [
        "fit", "--config", "a.yaml", "--model.learn.decoder", "{rank: 4}", "--model.learn.encoder.rank=3",
        "--model.learn.projector=all", "--trainer.logger", "null", "--model.learn.decoder",
    ]  # fmt: skip
    assert nothing_learnt(words) == words
