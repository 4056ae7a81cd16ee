"""What the captions' policy maximises, against the formulas of the papers written out here, and against TRL's own code
where it is installed (`pip install 'uae-lightning[benchmarks]'`)."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from uae_lightning.algorithms.token_logprobs import logprobs_and_entropy
from uae_lightning.autoencoder import Captioning
from uae_lightning.policies.captions import CaptionActs, CaptionGRPO
from uae_lightning.policies.token_objectives import CISPO, GSPO, SAPO, PPOClip, TokenObjective
from uae_lightning.types import Captions

LENGTHS, LIMIT, TOKENS = np.array([5, 2, 7, 1]), 9, 6  # of 4 captions; the longest possible; in the vocabulary
OBJECTIVES = [PPOClip(0.1, 0.2), GSPO(0.02, 0.05), CISPO(1.2), SAPO(1.0, 3.0)]
NORMALIZATIONS = ["grpo", "dr_grpo", "dapo"]


class Table:
    """An encoder whose logits [N, T, V] are its parameters, and those of its reference others."""

    def __init__(self, logits: Tensor, reference: Tensor) -> None:
        self.logits, self.others, self.on = logits, reference, True

    def token_logprobs(self, seen: Tensor, captions: Captions, *, temperature: float) -> tuple[Tensor, Tensor]:
        logits = (self.logits if self.on else self.others)[captions.tokens[:, 0]]  # the first token tells the row
        return logprobs_and_entropy(logits, captions.tokens, temperature=temperature)

    @contextmanager
    def reference(self):
        self.on = False
        yield
        self.on = True


class Case:
    """Four captions of a policy that has moved since it sampled them."""

    def __init__(self, objective: TokenObjective | None = None, moved: float = 0.3, **options) -> None:
        random = torch.Generator().manual_seed(0)
        old = torch.randn(4, 7, TOKENS, generator=random)
        self.logits = (old + moved * torch.randn(old.shape, generator=random)).requires_grad_()
        tokens = torch.randint(TOKENS, (4, 7), generator=random)
        tokens[:, 0] = torch.arange(4)
        mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
        self.captions = Captions([""] * 4, tokens, mask, cut=torch.tensor([False, False, True, False]))
        self.encoder = Table(self.logits, old + 0.5)
        self.encoder.others[..., 0] += 1.0
        parts = SimpleNamespace(reader=self.encoder, captioning=Captioning(1.0, LIMIT))
        options = {"group_size": 2, "micro_batch": 4, "kl_beta": 0.0} | options
        self.policy = CaptionGRPO(parts, objective=objective, **options)
        self.acts = CaptionActs(torch.zeros(2), self.captions)
        self.acts.old.copy_(logprobs_and_entropy(old, tokens)[0])
        self.advantages = torch.tensor([1.5, -0.5, -1.0, 0.7])

    def loss(self, batches: tuple[list[int], ...] = ([0, 1, 2, 3],)) -> Tensor:
        weights, total = self.policy.token_weights(self.captions), torch.zeros(())
        for rows in map(torch.tensor, batches):
            element, self.metrics = self.policy.loss(self.acts, rows, 0, self.advantages[rows], first=False)
            total = total + (element * weights[rows]).sum()
        return total

    def by_logp(self) -> tuple[float, np.ndarray]:
        """The loss, and its gradient [N, T] with respect to the log-probabilities."""
        kept = []
        score = self.encoder.token_logprobs

        def watched(*args, **options):
            logp, entropies = score(*args, **options)
            kept.append(logp.retain_grad() or logp)
            return logp, entropies

        self.encoder.token_logprobs = watched
        loss = self.loss()
        loss.backward()
        return loss.item(), kept[0].grad.double().numpy()

    @property
    def ratios(self) -> np.ndarray:
        """[N, T]"""
        logp, _ = logprobs_and_entropy(self.logits.detach(), self.captions.tokens)
        return (logp - self.acts.old).double().exp().numpy()


# --------------------------------------------------------------------------------------------------- written out, plain


def plain_weight(normalization: str, i: int) -> float:
    """Of each token of caption i."""
    return {
        "grpo": 1 / LENGTHS[i] / len(LENGTHS),
        "dr_grpo": 1 / LIMIT / len(LENGTHS),
        "dapo": 1 / LENGTHS.sum(),
    }[normalization]


def plain_terms(objective: TokenObjective, ratios: np.ndarray, a: float) -> list[tuple[float, float]]:
    """(loss, its derivative by the log-probability) of each token of one caption, whose tokens weigh the same."""
    terms = []
    mean = float(np.prod(ratios) ** (1 / len(ratios)))
    for r in ratios:
        if isinstance(objective, CISPO):
            terms.append((None, -min(r, objective.limit) * a))
        elif isinstance(objective, SAPO):
            tau = objective.positive if a > 0 else objective.negative
            p = 1 / (1 + np.exp(-tau * (r - 1)))
            terms.append((-4 / tau * p * a, -4 * p * (1 - p) * r * a))
        else:
            r = mean if isinstance(objective, GSPO) else r
            clipped = min(max(r, 1 - objective.clip_low), 1 + objective.clip_high)
            terms.append((-min(r * a, clipped * a), 0.0 if clipped * a < r * a else -r * a))
    return terms


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_an_objective_is_that_of_its_paper(objective, normalization):
    # Red with another sign, clamp(min= for clamp(max=, an importance weight that has a gradient, `advantages > 0`
    # turned round, 4 / temperature -> 2 / temperature, or a mean over the padding as well.
    case = Case(objective, normalization=normalization)
    loss, gradient = case.by_logp()
    expected, wanted = 0.0, np.zeros((4, 7))
    for i, length in enumerate(LENGTHS):
        terms = plain_terms(objective, case.ratios[i, :length], case.advantages[i].item())
        for t, (value, slope) in enumerate(terms):
            wanted[i, t] = plain_weight(normalization, i) * slope
            expected += plain_weight(normalization, i) * (value or 0.0)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(expected, rel=1e-4) or isinstance(objective, CISPO)
    assert 0 < case.metrics.get("clip_fraction", 0.5) < 1  # the clips bind, but not everywhere


def test_the_default_is_ppo_s_clip_with_the_policy_s_own_ranges():
    # Red if `objective or` goes, or clip_low and clip_high change places.
    assert Case(clip_low=0.1, clip_high=0.2).loss() == Case(PPOClip(0.1, 0.2)).loss() != Case(PPOClip(0.2, 0.1)).loss()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_on_policy_all_objectives_are_one(objective, normalization):
    # Red with 4 / temperature -> 1 / temperature, or CISPO without its log-probability.
    found, grpo = Case(objective, 0.0, normalization=normalization), Case(moved=0.0, normalization=normalization)
    np.testing.assert_allclose(found.by_logp()[1], grpo.by_logp()[1], atol=1e-6)
    assert found.metrics["log_ratio_abs_max"] == 0 and found.metrics["ratio_mean"] == 1
    assert found.metrics.get("gate", 1) == 1 and found.metrics.get("clip_fraction", 0) == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_micro_batches_add_up_off_policy_too(objective, normalization):
    # Red if the mean of GSPO's ratio is taken over the rows of a micro-batch.
    options = {"normalization": normalization, "kl_beta": 0.1, "entropy_bonus": 0.1, "mask_cut_captions": True}
    whole, parts = (Case(objective, **options) for _ in range(2))
    whole.loss().backward()
    parts.loss(([2], [1], [0, 3])).backward()
    torch.testing.assert_close(parts.logits.grad, whole.logits.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_what_stands_in_the_padding_changes_nothing(objective, garbage):
    # Red without a masked_fill: of CISPO's log-probability, SAPO's loss, or the entropy.
    case = Case(objective)
    mask, (logp, _) = case.captions.mask, logprobs_and_entropy(case.logits.detach(), case.captions.tokens)
    found = []
    for fill in (0.0, garbage):
        own = logp.masked_fill(~mask, fill).requires_grad_()
        element, metrics = objective.loss(own, case.acts.old.masked_fill(~mask, -fill), case.advantages, mask)
        element.sum().backward()
        found.append((element.detach(), own.grad, metrics))
    (clean, clean_gradient, clean_metrics), (element, gradient, metrics) = found
    assert torch.equal(element, clean) and torch.equal(gradient, clean_gradient) and metrics == clean_metrics
    assert not element[~mask].any() and not gradient[~mask].any()


@pytest.mark.parametrize("log_ratio", [1e4, -1e4])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_a_runaway_ratio_stays_finite_under_any_objective(objective, log_ratio):
    # Red if `_exp` does not clamp.
    for advantage in (1.0, -1.0):
        logp = torch.tensor([[log_ratio]], requires_grad=True)
        element, metrics = objective.loss(
            logp, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool)
        )
        element.sum().backward()
        assert element.isfinite().all() and logp.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())


def test_gspo_clips_whole_captions():
    # Red if importance="sequence" goes: single tokens would be clipped.
    gradient = Case(GSPO(0.02, 0.05)).by_logp()[1]
    moved = [(gradient[i, :length] != 0).tolist() for i, length in enumerate(LENGTHS)]
    assert all(len(set(of_caption)) == 1 for of_caption in moved)
    assert {of_caption[0] for of_caption in moved} == {True, False}


def test_an_entropy_bonus_makes_the_policy_less_certain():
    # Red with + for -, or without the gradient of the entropy.
    case = Case(PPOClip(), entropy_bonus=1.0)
    case.advantages = torch.zeros(4)
    case.loss().backward()
    mask, tokens = case.captions.mask, case.captions.tokens
    before, after = (
        logprobs_and_entropy(logits, tokens)[1] for logits in (case.logits, case.logits - case.logits.grad)
    )
    assert (after[mask] > before[mask]).all() and not case.logits.grad[~mask].any()
    torch.testing.assert_close(case.metrics["entropy"], before[mask].mean().detach())
    assert not case.metrics["entropy"].requires_grad


@pytest.mark.parametrize("options", [{"clip_low": 0.1}, {"clip_high": 0.3}])
def test_two_clip_ranges_are_refused(options):
    # Red without the second look in CaptionGRPO.check.
    for objective in (None, SAPO()):
        policy = Case(objective, **options).policy
        if objective is None:
            policy.check(policy)
        else:
            with pytest.raises(ValueError, match="clip_low and clip_high .* objective names another"):
                policy.check(policy)
    Case(SAPO(), clip_low=0.2).policy.check(Case(SAPO()).policy)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GSPO(clip_low=0.0), "clip_low must be a number above 0"),
        (lambda: SAPO(negative=-1.0), "negative must be a number above 0"),
        (lambda: Case(CISPO(0.9)).loss(), "limit must be at least 1"),
    ],
)
def test_numbers_that_make_no_objective_are_refused(make, words):
    # Red without @checked, or without the look in `cispo`.
    with pytest.raises(ValueError, match=words):
        make()


# --------------------------------------------------------------------------------------------------- TRL's own code


def trl_loss(case: Case, loss_type: str, level: str, **numbers) -> Tensor:
    """What TRL's GRPOTrainer makes of the same numbers; nothing of it is replaced but the model."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    logp, entropies = logprobs_and_entropy(case.logits, case.captions.tokens)
    with torch.no_grad():
        reference, _ = logprobs_and_entropy(case.encoder.others, case.captions.tokens)
    policy, mask = case.policy, case.captions.mask.long()
    if policy.mask_cut_captions:
        mask = mask * (~case.captions.cut).long()[:, None]  # as TRL does before it comes to the loss
    own = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropies, None), _metrics=defaultdict(_lists),
        model=SimpleNamespace(training=True), accelerator=_one_process(), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, use_adaptive_entropy=False,
        current_gradient_accumulation_steps=1, max_completion_length=LIMIT, beta=policy.kl_beta,
        loss_type=loss_type, importance_sampling_level=level, _entropy_bonus_enabled=policy.entropy_bonus > 0,
        entropy_coef=policy.entropy_bonus, epsilon_low=numbers.pop("epsilon_low", None),
        epsilon_high=numbers.pop("epsilon_high", None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1, **numbers),
    )  # fmt: skip
    inputs = {
        "prompt_ids": mask[:, :0], "prompt_mask": mask[:, :0], "completion_ids": case.captions.tokens,
        "completion_mask": mask, "advantages": case.advantages, "old_per_token_logps": case.acts.old,
        "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return trainer.GRPOTrainer._compute_loss(own, None, inputs)


def _lists() -> defaultdict:
    return defaultdict(list)


def _one_process() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda value: value, reduce=lambda value, reduction: value
    )


@pytest.mark.parametrize("masks", [False, True], ids=["cut captions train", "cut captions masked"])
@pytest.mark.parametrize(
    ("objective", "normalization", "loss_type", "level", "numbers", "factor"),
    [
        (PPOClip(0.1, 0.2), "grpo", "grpo", "token", {"epsilon_low": 0.1, "epsilon_high": 0.2}, 1),
        (PPOClip(0.1, 0.2), "dr_grpo", "dr_grpo", "token", {"epsilon_low": 0.1, "epsilon_high": 0.2}, 1),
        (PPOClip(0.1, 0.2), "dapo", "dapo", "token", {"epsilon_low": 0.1, "epsilon_high": 0.2}, 1),
        (PPOClip(0.1, 0.2), "dapo", "bnpo", "token", {"epsilon_low": 0.1, "epsilon_high": 0.2}, 1),
        (GSPO(0.02, 0.05), "grpo", "grpo", "sequence", {"epsilon_low": 0.02, "epsilon_high": 0.05}, 1),
        (GSPO(0.02, 0.05), "dr_grpo", "luspo", "sequence", {"epsilon_low": 0.02, "epsilon_high": 0.05}, LIMIT),
        (CISPO(1.2), "dapo", "cispo", "token", {"epsilon_high": 1.2}, 1),
        (SAPO(1.0, 3.0), "grpo", "sapo", "token", {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 3.0}, 1),
    ],
)
def test_loss_and_gradient_are_those_of_trl(objective, normalization, loss_type, level, numbers, factor, masks):
    # Red as the tests above are; BNPO is "dapo" where there is one micro-batch, LUSPO is GSPO with "dr_grpo" times the
    # longest possible length. TRL's entropy is a mean over tokens in any case, which is how "dapo" weighs it.
    options = {"kl_beta": 0.3, "entropy_bonus": 0.1 if normalization == "dapo" and not masks else 0.0}
    case = Case(objective, normalization=normalization, mask_cut_captions=masks, **options)
    theirs = trl_loss(case, loss_type, level, **numbers)
    (wanted,) = torch.autograd.grad(theirs, case.logits)
    ours = factor * case.loss()
    (gradient,) = torch.autograd.grad(ours, case.logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
