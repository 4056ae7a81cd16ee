import re

import numpy as np
import pytest
import torch
from PIL import Image

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.cli import main
from uae_lightning.commands import generate, pictures
from uae_lightning.run import loading as stage_loading
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Sampling


@pytest.fixture
def model(make_encoder, make_projector, make_decoder):
    return AutoEncoder(make_encoder(), make_projector(), make_decoder(), sampling=Sampling(steps=2)).eval()


def test_a_picture_depends_on_its_text_and_the_seed_alone(model):
    # red with `manual_seed(0)`, or with `torch.randn` without a generator
    torch.manual_seed(5)
    ball = generate.draw(model, "a red ball", 1)
    assert ball.shape == (3, IMAGE_SIZE, IMAGE_SIZE) and 0 <= ball.min() and ball.max() <= 1
    torch.manual_seed(6)
    again, other, later = (
        generate.draw(model, *call) for call in (("a red ball", 1), ("a star", 1), ("a red ball", 2))
    )
    assert torch.equal(ball, again) and not torch.equal(ball, other) and not torch.equal(ball, later)


def test_it_is_conditioned_on_as_in_training(model):
    # red with `model.encoder.embed` in place of `model.read`
    noise = torch.randn(1, *model.decoder.latent_shape, generator=torch.Generator().manual_seed(4))
    wanted = model.draw(model.read(["a red ball"]), noise)[0]
    assert torch.equal(generate.draw(model, "a red ball", 4), wanted)


def test_the_command_writes_one_row(model, tmp_path, monkeypatch, capsys):
    # red with `torch.cat(pictures, 1)`, or with the texts of --prompts before the others
    monkeypatch.setattr(generate, "load_chosen", lambda options: model)
    (tmp_path / "prompts.txt").write_text("a star\n\n  a red ball  \n")
    output = tmp_path / "row.png"
    call = ["generate", "a red ball", "--config=x.yaml", f"--prompts={tmp_path / 'prompts.txt'}", f"--output={output}"]
    assert main(call) == 0
    assert f"3 pictures: {output}" in capsys.readouterr().out
    row = np.asarray(Image.open(output))
    assert row.shape == (IMAGE_SIZE, 3 * IMAGE_SIZE, 3)
    assert main(["generate", "a red <|im_end|> ball", "--config=x.yaml", f"--output={output}"]) == 0
    assert "1 of the texts hold control tokens" in capsys.readouterr().out
    ball, star, ball_again = np.split(row, 3, 1)
    assert np.array_equal(ball, ball_again) and not np.array_equal(ball, star)


def test_a_picture_of_another_shape(model, tmp_path, monkeypatch, capsys):
    # red with height for width, or without `check_size`
    monkeypatch.setattr(generate, "load_chosen", lambda options: model)
    output = tmp_path / "wide.png"
    call = ["generate", "a red ball", "--config=x.yaml", f"--output={output}"]
    assert main([*call, f"--size={IMAGE_SIZE}x{IMAGE_SIZE // 2}"]) == 0
    assert Image.open(output).size == (IMAGE_SIZE, IMAGE_SIZE // 2)
    capsys.readouterr()
    assert main([*call, f"--size={IMAGE_SIZE + 1}x{IMAGE_SIZE}"]) == 2
    assert "--size: sides must be multiples of" in capsys.readouterr().err


def test_texts_are_rewritten_one_at_a_time_before_they_are_drawn(model, tmp_path, monkeypatch, capsys):
    # red if the text itself is drawn, texts share a batch, or the seed does not reach the encoder
    monkeypatch.setattr(generate, "load_chosen", lambda options: model)
    model.captioning = Captioning(1.0, 8)
    output = tmp_path / "row.png"
    texts = ["a red ball", "a picture of two cats at the center"]
    assert main(["generate", *texts, "--config=x.yaml", "--rewrite", "--seed=3", f"--output={output}"]) == 0
    rewritten = [model.rewrite([text], seed=3).texts[0] for text in texts]
    printed = capsys.readouterr().out
    assert all(f"{text} -> {new}\n" in printed for text, new in zip(texts, rewritten, strict=True))
    wanted = generate.side_by_side([model.generate([text], 3)[0] for text in rewritten])
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(wanted))


@pytest.fixture
def verifier(tmp_path, monkeypatch):
    """The YAML of a reward of one's own."""
    (tmp_path / "darkness.py").write_text(DARKNESS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "verifier.yaml").write_text("class_path: darkness.Darkness")
    return tmp_path / "verifier.yaml"


DARKNESS = """
from uae_lightning.interfaces import Reward
from uae_lightning.types import RewardOutput

class Darkness(Reward):
    needs_originals = False

    def forward(self, inputs):
        total = -inputs.reconstructions.mean((1, 2, 3))
        return RewardOutput(total, {"darkness": total})
"""


def test_the_best_of_several_is_written_and_its_cost_told(model, verifier, tmp_path, monkeypatch, capsys):
    # red if the first candidate is written, or guidance is left out of the cost
    monkeypatch.setattr(generate, "load_chosen", lambda options: model)
    model.sampling = Sampling(2, 1.5)
    output = tmp_path / "row.png"
    call = ["generate", "a red ball", "--config=x.yaml", f"--output={output}"]
    assert main(call) == 0
    assert "\n4 decoder calls a picture\n" in f"\n{capsys.readouterr().out}"
    plain = np.asarray(Image.open(output))
    assert main([*call, "--candidates=3", "--rounds=2", "--restart=0.5", f"--verifier={verifier}"]) == 0
    printed = capsys.readouterr().out
    assert "18 decoder calls a picture, as many as one drawing with --steps 9\n" in printed
    before, after = (float(word) for word in re.findall(r"-0\.\d+", printed))
    best = np.asarray(Image.open(output))
    assert after > before and best.mean() < plain.mean() and after == pytest.approx(-best.mean() / 255, abs=1e-3)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["in quotes", "--prompts"]),
        (["a ball", "--config=a.yaml", "--candidates=2"], ["--candidates", "need --verifier"]),
        (["a ball", "--config=a.yaml", "--restart=0"], ["--restart", "above 0"]),
        (["a ball", "--config=a.yaml", "--verifier=none.yaml"], ["--verifier none.yaml does not exist"]),
        (["a ball", "--config=a.yaml", "--verifier=stage.yaml"], ["stage.yaml is not the YAML of a reward"]),
        (["a ball", "--config=a.yaml", "--verifier=pixels.yaml"], ["PixelSimilarity compares with an original"]),
        (["a ball", "--weights=none"], ["none is not the folder of a run"]),
        (["a ball", "--config=none.yaml"], ["none.yaml does not exist"]),
        (["--prompts=none.txt"], ["--prompts none.txt does not exist"]),
        (["--prompts=latin.txt"], ["--prompts latin.txt", "UTF-8"]),
        (["a ball", "--config=a.yaml", "--output=a.mp3"], ["--output a.mp3", ".png"]),
        (["a ball", "--config=a.yaml", "--output=none/a.png"], ["none does not exist"]),
        (["a ball", "--config=a.yaml", "--steps=0"], ["--steps"]),
        (["a ball", "--config=a.yaml", "--size=96"], ["--size", "768x512"]),
        (["a ball", "--weights=empty"], ["empty has no stage"]),
    ],
)
def test_mistakes_in_the_call(args, words, tmp_path, monkeypatch, capsys):
    # red without check_output, or without the try in read_lines
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.yaml").write_text("model: 3")
    (tmp_path / "pixels.yaml").write_text("class_path: uae_lightning.rewards.pixel_similarity.PixelSimilarity")
    (tmp_path / "latin.txt").write_bytes("käse".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text('{"stages": ["see"]}')
    assert main(["generate", *args]) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(word in error for word in words), error


def test_settings_reach_the_model(tmp_path, monkeypatch):
    # red with `if v` in place of `is not None`, or with the weights over the settings turned round
    seen = {}

    def build(config, settings):
        seen.update(settings, config=config)
        return torch.nn.Identity()

    monkeypatch.setattr(stage_loading, "build_autoencoder", build)
    (tmp_path / "see" / "weights" / "encoder").mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"stages": ["see"]}')
    options = generate.parse(["a ball", f"--weights={tmp_path}", "--guidance=0", f"--output={tmp_path / 'a.png'}"])
    pictures.load_chosen(options)
    assert seen == {
        "config": tmp_path / "see" / "config.yaml",
        "encoder.path": tmp_path / "see" / "weights" / "encoder",
        "sampling.guidance": 0.0,
    }
