"""What the README shows of Python: five lines."""

import torch
from PIL import Image
from small_run import write_run

import uae_lightning
from uae_lightning.scenes.scene import IMAGE_SIZE


def test_a_run_can_be_loaded_to_reconstruct_and_to_generate(parts_folder, tmp_path):
    # red if weights of the run are not taken, or pictures come in another size than the decoder's
    start = {
        "encoder": {"path": str(parts_folder / "encoder"), "max_pixels": IMAGE_SIZE**2},
        "projector": {"path": str(parts_folder / "projector")},
        "decoder": {"path": str(parts_folder / "decoder"), "resolution": IMAGE_SIZE, "sigma_spacing": "even"},
    }
    stages = {"pretrain": {"decoder": "all"}}
    run = write_run(tmp_path / "run", start, stages, sampling={"steps": 2}, captioning={"max_new_tokens": 8})
    Image.new("RGB", (90, 70), "red").save(tmp_path / "photo.png")

    model = uae_lightning.load(run)
    captions, pictures = model.reconstruct(uae_lightning.open_pictures([tmp_path / "photo.png"], model.image_size))
    drawn = model.generate(["a large red ball"], seed=1)
    assert len(captions.texts) == 1 and pictures.shape == drawn.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    again = uae_lightning.load(run, run / "pretrain" / "config.yaml").generate(["a large red ball"], seed=1)
    assert torch.equal(drawn, again)
