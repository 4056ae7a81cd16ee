"""Weights are loaded when they are needed, once, and go when there is no room."""

import os

import pytest
import small_runs

from uae_lightning.app import models as app_models
from uae_lightning.app.models import Models
from uae_lightning.app.round_trip import judges_of
from uae_lightning.app.run_folders import RunFolders
from uae_lightning.usage import UsageError

runs, tabs = small_runs.runs, small_runs.tabs


@pytest.fixture
def counted(monkeypatch):
    """Paths of the YAMLs whose models were built."""
    loads, build = [], app_models.build_autoencoder
    counting = lambda config, paths: loads.append(config) or build(config, paths)  # noqa: E731
    monkeypatch.setattr(app_models, "build_autoencoder", counting)
    return loads


def test_models_are_loaded_lazily_and_once(runs, counted):
    # red with a load in `__init__`, or without `_kept`
    models = Models(RunFolders([runs]), None)
    models.names(), models.moments("small"), models.sampling("small")
    assert counted == []
    assert models.latest("small") is models.latest("small") and len(counted) == 1
    assert not models.latest("small").training


def test_the_longest_unused_goes_where_there_is_no_room(runs, counted):
    # red with `popitem()` in place of `popitem(last=False)`, or without move_to_end
    models = Models(RunFolders([runs]), None)
    start, first, second = models.moments("small")
    one = app_models.size([models.at(start)])
    models.kept_bytes = int(2.5 * one)
    models.at(first), models.at(start), models.at(second)  # `first` is the one that goes
    models.at(start)
    assert len(counted) == 3
    models.at(first)
    assert len(counted) == 4
    models.kept_bytes = 0
    models.at(second)
    assert len(models.kept) == 1


def test_new_weights_of_a_run_under_way_are_read(runs, counted):
    # red with a key that does not change with the weights
    models = Models(RunFolders([runs]), None)
    before = models.latest("small")
    projector = runs / "small" / "second" / "weights" / "projector"
    about = projector.stat()
    os.utime(projector, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))
    assert models.latest("small") is not before


def test_judges_that_cannot_be_had_spoil_no_drawing(runs, tmp_path):
    # red with the error let through in `judges_of`
    config = (runs / "small" / "first" / "config.yaml").read_text()
    broken = tmp_path / "broken.yaml"
    broken.write_text(config.replace("pixel_similarity.PixelSimilarity", "pixel_similarity.Nothing"))
    judges, note = judges_of(Models(RunFolders([]), broken), app_models.START)
    assert judges == [] and "no rewards" in note and str(tmp_path) not in note


def test_verifiers_are_offered_by_name(runs, tabs, tmp_path):
    # red if one that compares with an original is taken
    yaml = tmp_path / "verifier.yaml"
    yaml.write_text("class_path: uae_lightning.rewards.pixel_similarity.PixelSimilarity")
    models = Models(RunFolders([runs]), None, verifier=yaml)
    assert models.verifiers() == ["PixelSimilarity", app_models.READ_BACK]
    with pytest.raises(UsageError, match="compares with an original"):
        models.ranking("PixelSimilarity", tabs.models.latest("small"))
    yaml.write_text("steps: 3")
    with pytest.raises(UsageError, match="not the YAML of a reward"):
        models.verifiers()
