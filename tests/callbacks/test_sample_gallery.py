import json

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from standins import Pictures, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SampleGallery
from callbacks.sample_gallery import row_of


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
    # Red if > step becomes < step in forget_later_steps, or < step goes in add_captions.
    fit(tmp_path, SampleGallery(2), steps=6)
    fit(tmp_path, SampleGallery(2), steps=2)
    assert sorted(path.stem for path in (tmp_path / "gallery").glob("step*")) == ["step-000000", "step-000002"]
    assert json.loads((tmp_path / "gallery/captions.json").read_text()).keys() == {"0", "2"}


def test_tensorboard_gets_the_grid_and_the_captions(tmp_path):
    # Red if the step is not handed to add_image.
    fit(tmp_path, SampleGallery(4), steps=2, logger=TensorBoardLogger(tmp_path, name="tb", version=0))
    events = EventAccumulator(str(tmp_path / "tb/version_0"))
    events.Reload()
    images = events.Images("gallery/original_above_reconstruction")
    assert [(image.step, image.width, image.height) for image in images] == [(0, 32, 16), (2, 32, 16)]
    text = events.Tensors("gallery/captions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[1] == "1. caption of 0-1"


def test_out_of_range_pixels_do_not_wrap_around():
    # Red if clamp(0, 1) goes.
    row = row_of([torch.tensor([1.5, -0.5, 1.0])[None, :, None, None].expand(1, 3, 2, 2)])
    assert row[:, 0, 0].tolist() == [255, 0, 255]
