import itertools

from lightning.pytorch.callbacks import Callback
from standins import Closeness, fit

from callbacks import RewardCallback, StepProgressBar


class Watch(Callback):
    """The state of the bar after every batch; comes after it in the list."""

    def __init__(self, bar):
        self.bar, self.seen = bar, []

    def on_train_batch_end(self, *_):
        state = self.bar.train_progress_bar.format_dict
        self.seen.append((state["n"], state["initial"], state["total"]))


def test_the_bar_counts_optimiser_steps_to_max_steps_and_goes_on_after_a_resume(tmp_path):
    # Red if the total or `initial` is not set in on_train_start.
    bar = StepProgressBar()
    watch = Watch(bar)
    fit(tmp_path, bar, watch, steps=3, enable_progress_bar=True)
    assert watch.seen == [(1, 0, 3), (2, 0, 3), (3, 0, 3)]
    bar = StepProgressBar()
    watch = Watch(bar)
    fit(tmp_path, bar, watch, steps=6, enable_progress_bar=True, resume=tmp_path / "checkpoints/step=3.ckpt")
    assert watch.seen == [(4, 3, 6), (5, 3, 6), (6, 3, 6)]


def test_into_a_file_it_prints_a_first_and_a_last_line_with_reward_and_time_left(tmp_path, capsys, monkeypatch):
    # Red if SECONDS becomes 0, `finished or` goes, or the clock is the one that jumps by days.
    days = itertools.count(0, 86_400)
    monkeypatch.setattr("tqdm.std.time", lambda: next(days))
    fit(tmp_path, StepProgressBar(), RewardCallback(Closeness()), steps=20, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "/20" in line]
    assert [line.split("|")[2].split("[")[0].strip() for line in lines] == ["1/20", "20/20"]
    assert all(line.startswith("TinyStage:") and "[00:0" in line and "<00:0" in line for line in lines)
    assert "train/reward=" in lines[1] and "val/reward=" in lines[1] and "v_num" not in lines[1]


def test_without_max_steps_there_is_no_total(tmp_path):
    # Red if `> 0 else None` goes.
    bar = StepProgressBar()
    watch = Watch(bar)
    fit(tmp_path, bar, watch, steps=-1, max_epochs=1, limit_train_batches=2, enable_progress_bar=True)
    assert watch.seen == [(1, 0, None), (2, 0, None)]
