import pytest
import torch
from standins import Closeness, TinyStage, fit, rows

from callbacks import EMA, RewardCallback
from callbacks.reward import append_row, cut_rows, evaluate, not_finite
from uae_lightning.evaluation.image_health import compared
from uae_lightning.rewards.pixel_similarity import Pixels
from uae_lightning.rewards.unified_score import UnifiedScore
from uae_lightning.types import RewardInput, RewardOutput


def inputs(n=5, size=8, captions=None):
    a, b = torch.rand(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return RewardInput(a, b[..., :size], ["a"] * (n if captions is None else captions))


def test_every_validation_is_a_row_step_0_included(tmp_path):
    # Red if the row is written in `if not trainer.sanity_checking` only, or keys are not joined over batches.
    fit(tmp_path, RewardCallback(Closeness(), Closeness(2.0)), steps=4)
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4]
    for row in rows(tmp_path):
        assert row["keys"] == [f"{batch}-{i}" for batch in range(2) for i in range(4)]
        assert row["reward_name"] == row["unrewarded_name"] == "Closeness" and row["caption_tokens"] == [3] * 8
        assert row["unrewarded"] == pytest.approx([2 * reward for reward in row["reward"]])
        assert row["parts"]["half"] == pytest.approx([reward / 2 for reward in row["reward"]])
        assert row["unrewarded_parts"].keys() == {"closeness", "half"}
    first, last = rows(tmp_path)[0]["reward"], rows(tmp_path)[-1]["reward"]
    assert all(after > before for before, after in zip(first, last, strict=True))


def test_rows_from_before_a_resume_are_replaced(tmp_path):
    # Red if kept + 1 becomes kept, or the 1 goes from setup's -1.
    fit(tmp_path, RewardCallback(Closeness()), steps=6)
    whole = rows(tmp_path)
    fit(tmp_path, RewardCallback(Closeness()), steps=6, resume=tmp_path / "checkpoints/step=3.ckpt")
    assert rows(tmp_path) == whole and [row["step"] for row in whole] == [0, 2, 4, 6]
    fit(
        tmp_path,
        RewardCallback(Closeness()),
        steps=6,
        resume=tmp_path / "checkpoints/step=3.ckpt",
        val_check_interval=6,
    )
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 6]  # 4 came after the checkpoint
    fit(tmp_path, RewardCallback(Closeness()), steps=2)  # started anew
    assert [row["step"] for row in rows(tmp_path)] == [0, 2]


def test_a_row_is_appended_behind_whole_rows(tmp_path, monkeypatch):
    # Red with "w" for "a", with a rewrite in append_row, or where half a line at the end is not left out by parse_rows.
    path = tmp_path / "validation.jsonl"
    path.write_text('{"step": 0}\n{"step": 2}\n{"step": 4, "rew')
    cut_rows(path, 3)
    whole = path.stat().st_ino
    append_row(path, {"step": 4})
    assert path.read_text() == '{"step": 0}\n{"step": 2}\n{"step": 4}\n' and path.stat().st_ino == whole


class Counting(Pixels):
    pictures = 0

    def embed(self, images):
        self.pictures += len(images)
        return super().embed(images)


def test_originals_of_validation_are_embedded_once(tmp_path):
    # Red if the key is not the pictures' content, on_validation_start no longer asks for it, or on_validation_end does
    # not end it: originals of training would be kept for nothing.
    judge, plain = Counting(), Pixels()
    fit(tmp_path / "a", RewardCallback(Closeness(), UnifiedScore({"pixels": judge})), steps=4)
    assert judge.pictures == 8 + 3 * 8 and not judge.remembers
    fit(tmp_path / "b", RewardCallback(Closeness(), plain), steps=4)
    assert rows(tmp_path / "a")[-1]["unrewarded"] == rows(tmp_path / "b")[-1]["unrewarded"]
    evaluate(judge, inputs(8), 4)
    assert judge.pictures == 8 + 3 * 8 + 16 and len(judge._remembered) == 2


def test_a_reward_has_a_gradient_where_the_pictures_have_one():
    # Red with no_grad on `evaluate` (a stage could not learn by it), without set_grad_enabled (a reward whose own
    # weights are trained, or remembered embeddings, would keep a graph), or with the graph left in `last`.
    given, callback = inputs(), RewardCallback(Pixels(), micro_batch=2)
    assert not callback.score(given).total.requires_grad
    drawn = given.reconstructions.clone().requires_grad_()
    total = callback.score(RewardInput(given.originals, drawn, given.captions)).total
    (found,) = torch.autograd.grad(total.sum(), drawn)
    (wanted,) = torch.autograd.grad(Pixels()(RewardInput(given.originals, drawn, given.captions)).total.sum(), drawn)
    torch.testing.assert_close(found, wanted)
    kept = [callback.last.total, *callback.last.parts.values(), *callback.image_figures.values()]
    assert not any(tensor.requires_grad for tensor in kept)
    with torch.no_grad():
        assert not callback.score(RewardInput(given.originals, drawn, given.captions)).total.requires_grad


def test_what_is_logged(tmp_path):
    # Red if the key "train/reward" or "val/reward" changes, or total.std(unbiased=False) becomes total.mean().
    stage, trainer = fit(tmp_path, RewardCallback(Closeness(), Closeness(2.0)), steps=2)
    metrics = trainer.callback_metrics
    assert {"train/reward_std", "train/reward/half", "train/image/saturation", "val/reward/half"} <= metrics.keys()
    assert {"val/unrewarded", "val/caption_tokens"} <= metrics.keys()
    assert {"train/reward", "val/reward"} <= trainer.progress_bar_metrics.keys()
    row = rows(tmp_path)[-1]
    assert metrics["val/reward"].item() == pytest.approx(sum(row["reward"]) / 8)
    assert metrics["train/reward_std"] < 0.1 < metrics["train/reward"]
    assert stage.score is None  # taken back in teardown


def test_a_stage_that_does_not_ask_for_a_reward_logs_none(tmp_path):
    # Red if `if self.last is None` goes.
    class Unrewarded(TinyStage):
        def training_step(self, batch, batch_idx):
            return self.reconstruct(batch.images).square().mean()

    _, trainer = fit(tmp_path, RewardCallback(Closeness()), steps=1, stage=Unrewarded())
    assert "train/reward" not in trainer.callback_metrics


def test_reward_models_are_frozen_and_in_no_checkpoint_or_optimiser(tmp_path):
    # Red if self.reward is assigned to pl_module, or requires_grad_(False) goes.
    reward = Closeness().train()
    stage, trainer = fit(tmp_path, EMA(), RewardCallback(reward, Closeness(2.0)), steps=2)
    assert not reward.training and not reward.weight.requires_grad
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert id(reward.weight) not in trained | {id(p) for p in stage.parameters()}
    saved = torch.load(tmp_path / "checkpoints/step=2.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == TinyStage().state_dict().keys()
    assert not any("Reward" in key for key in saved["callbacks"])


def test_a_nan_reward_stops_the_run_and_says_where(tmp_path):
    # Red if ~values.isfinite() loses its ~.
    match = "Closeness: 'total' is NaN or infinite for 1 of 4 pictures.*lower the learning rate"
    with pytest.raises(FloatingPointError, match=match):
        fit(tmp_path, RewardCallback(Closeness(broken=True)), num_sanity_val_steps=0)
    broken = Closeness(broken=True)
    assert "for 2 of 4" in not_finite(broken, evaluate(broken, inputs(4), micro_batch=2))


def test_a_nan_reward_can_be_passed_over(tmp_path):
    # Red if `raise` stands without its condition, or finite() leaves what is not.
    with pytest.warns(UserWarning, match="NaN or infinite for 1 of 4 pictures; their groups are skipped"):
        _, trainer = fit(
            tmp_path, RewardCallback(Closeness(broken=True), skip_bad_rewards=True), steps=1, limit_val_batches=0
        )
    logged = trainer.callback_metrics
    assert all(torch.isfinite(logged[f"train/{name}"]) for name in ("reward", "reward_std", "reward/half"))
    with pytest.raises(FloatingPointError, match="in validation, Closeness"):
        fit(tmp_path, RewardCallback(Closeness(broken=True), skip_bad_rewards=True), steps=1)


def test_micro_batches_change_nothing_but_their_size():
    # Red if start + micro_batch becomes start + 1.
    whole, reward = evaluate(Closeness(), inputs(), 5), Closeness()
    pieces = evaluate(reward, inputs(), 2)
    assert reward.sizes == [2, 2, 1] and torch.equal(pieces.total, whole.total)
    assert torch.equal(pieces.parts["half"], whole.parts["half"]) and not pieces.total.requires_grad


def test_wrong_shapes_are_refused():
    # Red if != becomes == in either check.
    for bad in (inputs(size=6), inputs(captions=4)):
        with pytest.raises(ValueError, match="pictures of one size"):
            evaluate(Closeness(), bad, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda n: None, "returned NoneType"),
        (lambda n: torch.rand(n), "returned Tensor"),
        (lambda n: RewardOutput(torch.tensor(1.0), {"a": torch.rand(n)}), r"'total' has shape \(\) for 2"),
        (lambda n: RewardOutput(torch.rand(n, 2), {}), r"'total' has shape \(2, 2\) for 2"),
        (lambda n: RewardOutput(torch.rand(n), {"a": torch.rand(1)}), r"'a' has shape \(1,\) for 2"),
        (lambda n: RewardOutput([0.5] * n, {"a": torch.rand(n)}), "gave list as 'total'"),
        (lambda n: RewardOutput(torch.rand(n), {}), "named no parts"),
        (lambda n: RewardOutput(torch.rand(n), None), "named no parts"),
        (lambda n: RewardOutput(torch.rand(n), {"a": torch.rand(n)}, {"b": 1.0}), "weighs 'b', which is none"),
    ],
)
def test_what_is_no_reward_is_refused_by_name(given, said):
    # Red if `fault` is not asked, or of the first micro-batch only.
    class Odd(Closeness):
        def forward(self, inputs):
            self.sizes.append(1)
            fine = torch.rand(len(inputs.captions))
            return given(len(inputs.captions)) if len(self.sizes) == 2 else RewardOutput(fine, {"a": fine})

    with pytest.raises(ValueError, match=f"^Odd .*{said}.*RewardOutput.total, parts. of uae_lightning.types"):
        evaluate(Odd(), inputs(), 2)


def test_image_statistics():
    # Red if reconstructions and originals are swapped, or > EDGE becomes < EDGE.
    flat = torch.tensor([0.8, 0.4, 0.4])[None, :, None, None].expand(2, 3, 16, 16)
    noisy = (flat + 0.2 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    gray = flat.mean(1, keepdim=True).expand_as(flat)
    assert all(ratio == pytest.approx(1) for ratio in compared(noisy, noisy).values())
    assert compared(flat, gray)["saturation"] < 1e-6
    worse = compared(noisy, flat)
    assert worse["high_frequency"] < 1e-6 and worse["edge_density"] == 0


def test_a_kill_while_rows_are_cut_keeps_them(tmp_path, monkeypatch):
    # Red if partial.write_text becomes path.write_text.
    path = tmp_path / "validation.jsonl"
    append_row(path, {"step": 0})
    monkeypatch.setattr("uae_lightning.files.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cut_rows(path, 0)
    assert path.read_text() == '{"step": 0}\n'


def test_step_0_is_on_the_curve(tmp_path):
    # Red if `if trainer.sanity_checking` becomes `if not trainer.sanity_checking`.
    from lightning.pytorch.loggers import CSVLogger

    fit(tmp_path, RewardCallback(Closeness()), steps=2, logger=CSVLogger(tmp_path, name="csv", version=0))
    table = [line.split(",") for line in (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()]
    column, step = table[0].index("val/reward"), table[0].index("step")
    assert [line[step] for line in table[1:] if line[column]][0] == "0"
