"""What TensorBoard will show, read back from the files that a stage has written."""

import re

import pytest
import torch
import yaml
from stand_ins import write_confs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from callbacks.captioned import captioned
from uae_lightning.cli import main
from uae_lightning.run.curves import FINAL, LAYOUT, settings_of


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """(folder, its events) of a stage that has trained four steps."""
    place = tmp_path_factory.mktemp("curves")
    write_confs(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one"]) == 0
    events = EventAccumulator(str(place / "one"), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return place / "one", events


def text(events, tag):
    return events.Tensors(tag)[0].tensor_proto.string_val[0]


def test_the_first_screen_is_a_layout_and_no_flat_line(stage):
    # red with Lightning's own logger: `epoch` is a curve, and there is no layout
    events = stage[1]
    assert "epoch" not in events.Tags()["scalars"] and {"val/reward", "train/loss"} <= set(events.Tags()["scalars"])
    layout = layout_pb2.Layout.FromString(text(events, "custom_scalars__config__"))
    assert [category.title for category in layout.category] == list(LAYOUT)
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["held-out reward"] == ["val/reward$"]


def test_the_curves_of_the_layout_exist():
    # red with a tag that no stage logs, such as policy/kl_refrence
    logged = ["val/reward", "val/unrewarded", "val/unrewarded/pixels", "val/reward/grid", "train/reward/repetition"]
    logged += ["train/reward", "train/reward_std", "train/loss", "train/grad_norm", "val/caption_tokens"]
    logged += [
        f"policy/{name}" for name in ("approx_kl", "kl_reference", "first_log_ratio", "skipped_groups", "entropy")
    ]
    logged += ["policy/captions/clip_fraction", "policy/cut_captions", "policy/pictures/velocity_norm_ratio"]
    logged += ["train/image/saturation", "throughput/images_per_second", "time/rollout"]
    patterns = [pattern for charts in LAYOUT.values() for tags in charts.values() for pattern in tags]
    assert all(any(re.match(pattern, tag) for tag in logged) for pattern in patterns)
    assert all(any(re.match(pattern, tag) for pattern in patterns) for tag in logged)
    (only,) = LAYOUT["Reward"]["held-out reward"]
    assert not re.match(only, "val/reward/grid")


def test_settings_stand_beside_the_final_figures(stage):
    # red without log_hyperparams in before_fit: hparams.yaml is `{}`
    folder, events = stage
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert settings["seed"] == 3 and settings["trainer.max_steps"] == 4
    assert settings["model.autoencoder.decoder.path"] == "shipped"
    meta = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(meta).session_start_info.hparams
    assert started["trainer.max_steps"].number_value == 4
    meta = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(meta).experiment.metric_infos
    assert [metric.name.tag for metric in shown] == list(FINAL)
    assert (
        len(events.Scalars("val/reward")) == 3
    )  # what the table shows is the last of the curve, not a point of its own


def test_the_yaml_and_captions_beside_pictures_are_there(stage):
    # red without add_text, or with the YAML as Markdown
    folder, events = stage
    said = text(events, "config.yaml/text_summary").decode()
    assert said.splitlines()[1].startswith("    ") and "max_steps: 4" in said
    images = events.Images("gallery/captions_beside")
    assert len(images) == 3  # of the start and of two validations
    assert images[0].width == 2 * 192 + 3 * 12 + 380


def test_secrets_and_empty_settings_are_no_settings():
    # red without `value is not None`, or with init_args in the names
    config = {"seed_everything": 1, "model": {"class_path": "A", "init_args": {"lr": 0.1, "none": None, "l": [1, 2]}}}
    expected = {"model.class_path": "A", "model.lr": 0.1, "model.l": "[1, 2]", "seed": 1}
    assert settings_of(config) == expected


def test_pictures_and_captions_come_in_lines():
    # red with rows and columns exchanged, or a long caption that runs into the next picture
    rows = [torch.zeros(3, 96, 192, dtype=torch.uint8), torch.full((3, 96, 192), 200, dtype=torch.uint8)]
    rows[0][:, :, 96:] = 100  # the second original
    page = captioned(rows, ["word " * 400, ""])
    assert page.shape == (3, 12 + 2 * 204, 12 + 2 * 204 + 380)
    assert page[0, 20, 20] == 0 and page[0, 230, 20] == 100 and page[0, 20, 230] == 200
    assert (page[:, 205:215, 430:] == 255).all() and (page[:, 14:200, 430:] < 255).any()  # text ends before the next
