import json

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from standins import Pictures, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SampleGallery
from callbacks.sample_gallery import row_of, thinned


def test_files_of_every_validation_at_native_size(tmp_path):
    # Red if `room > 0` becomes `room > 2`, or [:room] goes.
    fit(tmp_path, SampleGallery(6), steps=4)
    folder = tmp_path / "gallery"
    names = ["captions.json", "originals.png", "step-000000.png", "step-000002.png", "step-000004.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    captions = json.loads((folder / "captions.json").read_text())
    assert captions == {step: [f"caption of {b}-{i}" for b, i in _first(6)] for step in ("0", "2", "4")}
    row = np.asarray(Image.open(folder / "originals.png"))
    assert row.shape == (8, 48, 3) and Image.open(folder / "step-000004.png").size == (48, 8)
    fifth = next(iter(list(Pictures(2))[1:])).images[0]
    assert np.array_equal(row[:, 32:40], (fifth * 255).round().byte().permute(1, 2, 0).numpy())


def _first(n):
    return [(index // 4, index % 4) for index in range(n)]


def test_a_resume_forgets_what_came_after_it(tmp_path):
    # Red without forget_others, or without `if int(key) in kept`.
    fit(tmp_path, SampleGallery(2), steps=6)
    fit(tmp_path, SampleGallery(2), steps=2)
    assert shown(tmp_path) == [0, 2]


def test_a_long_run_keeps_as_much_as_it_says_and_the_same_after_a_resume(tmp_path):
    # Red without state_dict: the resumed one would count from its own start.
    fit(tmp_path / "straight", SampleGallery(2, keep=4), steps=18)
    assert shown(tmp_path / "straight") == [0, 8, 16, 18]
    fit(tmp_path / "resumed", SampleGallery(2, keep=4), steps=14)
    checkpoint = tmp_path / "resumed/checkpoints/step=5.ckpt"
    fit(tmp_path / "resumed", SampleGallery(2, keep=4), steps=18, resume=checkpoint)
    assert shown(tmp_path / "resumed") == [0, 8, 16, 18]
    for count in range(1, 40):  # what is left out is never asked for again
        assert {*thinned(list(range(count + 1)), 5)} <= {*thinned(list(range(count)), 5), count}
        assert len(thinned(list(range(count)), 5)) <= 5


def shown(folder):
    steps = sorted(int(path.stem.removeprefix("step-")) for path in (folder / "gallery").glob("step-*"))
    assert sorted(map(int, json.loads((folder / "gallery/captions.json").read_text()))) == steps
    return steps


def test_tensorboard_gets_the_grid_and_the_captions(tmp_path):
    # Red if the step is not handed to add_image: Lightning's own, that of val/reward beside it.
    fit(tmp_path, SampleGallery(4), steps=2, logger=TensorBoardLogger(tmp_path, name="tb", version=0))
    events = EventAccumulator(str(tmp_path / "tb/version_0"))
    events.Reload()
    images = events.Images("gallery/original_above_reconstruction")
    assert [(image.step, image.width, image.height) for image in images] == [(0, 32, 16), (1, 32, 16)]
    text = events.Tensors("gallery/captions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[1] == "1. caption of 0-1"


def test_out_of_range_pixels_do_not_wrap_around():
    # Red if clamp(0, 1) goes.
    row = row_of([torch.tensor([1.5, -0.5, 1.0])[None, :, None, None].expand(1, 3, 2, 2)])
    assert row[:, 0, 0].tolist() == [255, 0, 255]
