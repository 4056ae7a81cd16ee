"""Quantizers, and an encoder whose language is a codebook."""

from __future__ import annotations

import pytest
import torch
from conftest import SCENES_PROMPTS

from uae_lightning.models.quantizers import BSQ, SimVQ
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.vision_codes import Detail, VisionCodes

QUANTIZERS = {"simvq": lambda: SimVQ(16), "bsq": lambda: BSQ(4)}
WIDTH = 12


@pytest.fixture
def make_codes(parts_folder):
    def make(quantizer="simvq", **options) -> VisionCodes:
        torch.manual_seed(0)
        vision = QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS)
        return VisionCodes(vision, QUANTIZERS[quantizer](), places=9, **options)

    return make


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    torch.manual_seed(1)
    made = QUANTIZERS[request.param]()
    made.build(WIDTH)
    return made


def features(count: int = 60) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(2))


def test_the_code_is_the_best_one_and_its_vector_the_one_that_is_drawn(quantizer):
    # red with argmin, with bits in another order than the corners, or without the matrix W
    found = features()
    codes, vectors, loss = quantizer(found)
    assert torch.equal(codes, quantizer.scores(found).argmax(-1)) and codes.max() < quantizer.size
    torch.testing.assert_close(vectors, quantizer.vectors(codes), atol=1e-5, rtol=0)
    assert loss.isfinite() and len(codes.unique()) > 4


def test_all_weights_learn_by_what_is_drawn_and_by_the_codebook(quantizer):
    # red with a detached vector or corner: then the codebook would not learn what pictures need
    codes, vectors, loss = quantizer(features())
    (vectors.square().sum() + loss).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_features_that_learn_get_the_gradient_of_the_vectors():
    # red without the straight-through estimator
    quantizer = SimVQ(16)
    quantizer.build(WIDTH)
    found = features().requires_grad_()
    _, vectors, _ = quantizer(found)
    vectors.sum().backward()
    torch.testing.assert_close(found.grad, torch.ones_like(found))


def test_unused_codes_move_to_far_features():
    # red if a used code moves, if W is not inverted, or the nearest features are taken: the codebook would collapse
    quantizer = SimVQ(16)
    quantizer.build(WIDTH)
    with torch.no_grad():
        quantizer.transform.weight.add_(0.1 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))
    clusters = 5 * torch.eye(WIDTH)[:8].repeat(8, 1) + 0.01 * features(64)
    use = torch.zeros(16)
    for _ in range(12):
        quantizer.seed(clusters, use)
    codes, vectors, _ = quantizer(clusters)
    assert len(codes.unique()) >= 8 and (vectors - clusters).square().sum(-1).max() < 0.1
    before = quantizer.codebook.detach().clone()
    for _ in range(30):
        quantizer.seed(vectors.detach(), use)  # where every feature is a code, nothing moves
    assert torch.equal(before, quantizer.codebook)


def test_bits_of_bsq_are_kept_even():
    # red with the sign of either entropy turned: all features would get one code
    torch.manual_seed(0)
    quantizer = BSQ(4, entropy_weight=1.0)
    quantizer.build(WIDTH)
    found = features(200)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(found)[2].backward()
        optimizer.step()
    shares = torch.bincount(quantizer(found)[0], minlength=16) / 200
    assert (shares > 0).sum() > 8 and shares.max() < 0.3


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_words_are_read_as_the_states_that_were_drawn_from(kind, make_codes, images):
    # red if `embed` forgets the places, or the words are of other codes
    encoder = make_codes(kind)
    codes, states, mask, _ = encoder.quantize(images)
    said = encoder.generate(images, samples=1, temperature=0.0, max_new_tokens=1, seed=0)
    assert torch.equal(said.tokens, codes) and said.texts[0].split()[0] == f"v{codes[0, 0]}"
    read, read_mask = encoder.embed(said.texts)
    torch.testing.assert_close(read, states)
    assert torch.equal(read_mask, mask) and read.shape == (4, 9, encoder.hidden_size)
    assert (encoder.where.std() > 0) and encoder.vision.model.model.language_model is None


def test_sampled_codes_have_the_log_probability_that_is_scored(make_codes, images):
    # red if `token_logits` is not what codes are drawn by, the order of samples differs, or a seed is forgotten
    encoder = make_codes("bsq")
    said = encoder.generate(encoder.see(images), samples=3, temperature=1.0, max_new_tokens=1, seed=5)
    logp, entropy = encoder.token_logprobs(images, said, temperature=1.0)
    torch.testing.assert_close(logp, said.logp, atol=1e-4, rtol=1e-4)
    again = encoder.generate(images, samples=3, temperature=1.0, max_new_tokens=1, seed=5)
    assert torch.equal(said.tokens, again.tokens) and len(set(said.texts)) > 4 and not said.cut.any()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_saved_codebook_comes_back(kind, make_codes, images, tmp_path):
    # red if the places, the codes or W are not saved, or one of another kind is read
    encoder = make_codes(kind)
    with torch.no_grad():
        for parameter in [encoder.where, *encoder.quantizer.parameters()]:
            parameter.add_(0.1)
    encoder.save(tmp_path)
    again = make_codes(kind, path=str(tmp_path))
    torch.testing.assert_close(again.quantize(images)[1], encoder.quantize(images)[1])
    assert not any(name.startswith("vision") for name in again.config)
    larger = VisionCodes(again.vision, SimVQ(8) if kind == "simvq" else BSQ(3), places=9, path=str(tmp_path))
    assert larger.codes == 16 and torch.equal(larger.where, again.where)  # what was saved says how many there are
    other = next(name for name in QUANTIZERS if name != kind)
    with pytest.raises(ValueError, match="of another codebook"):
        make_codes(other, path=str(tmp_path))


def test_a_prompt_is_no_caption_of_codes(make_codes):
    # red if words are skipped: a prompt would be drawn as nothing
    encoder = make_codes()
    for text in ("a red cat", "v1 v2", " ".join(["v16"] * 9)):
        with pytest.raises(ValueError, match="reads 9 codes, v0 to v15, and no language"):
            encoder.tokenize([text])


# ------------------------------------------------------------------------------------------------ two levels


def test_two_levels_are_read_as_they_were_drawn_from(make_codes, images):
    # red if the words of a place change order, the second codebook is left out, or its words are those of the first
    encoder = make_codes("bsq", detail=Detail(1, SimVQ(8)))
    codes, states, mask, _ = encoder.quantize(images)
    assert codes.shape == (4, 18) and states.shape == (4, 9, 192 + 4 * 160) and mask.shape == (4, 9)
    assert encoder.codes == 24 and encoder.hidden_size == states.shape[-1]
    assert codes[:, ::2].max() < 16 <= codes[:, 1::2].min() and codes.max() < 24
    said = encoder.generate(images, samples=1, temperature=0.0, max_new_tokens=1, seed=0)
    assert torch.equal(said.tokens, codes)
    read, read_mask = encoder.embed(said.texts)
    torch.testing.assert_close(read, states)
    assert torch.equal(read_mask, mask)
    wanted = encoder.detail.vectors(codes[:, 1::2] - 16)
    torch.testing.assert_close(states[..., 192:], wanted + encoder.where[:, 192:])


def test_what_the_second_level_tells_apart(make_codes, images):
    # red if the second level is taken out: one code for all that the tower says, and nothing is left of the pictures
    encoder = make_codes(detail=Detail(0, SimVQ(16)))
    encoder.seed(images, use := torch.zeros(encoder.codes))
    with torch.no_grad():
        encoder.quantizer.codebook.copy_(encoder.quantizer.codebook[:1].clone())
    said = encoder.generate(images, samples=1, temperature=0.0, max_new_tokens=1, seed=0)
    assert len(said.tokens[:, ::2].unique()) == 1 and len(set(said.texts)) > 2
    states = encoder.embed(said.texts)[0]
    assert not torch.equal(states[0], states[1]) and use.shape == (32,)


def test_sampled_words_are_of_their_level_and_as_likely_as_they_are_scored(make_codes, images):
    # red without the mask of the other level's words, in sampling or in scoring
    encoder = make_codes("bsq", detail=Detail(1, BSQ(3)))
    said = encoder.generate(images, samples=3, temperature=1.0, max_new_tokens=1, seed=5)
    assert said.tokens[:, ::2].max() < 16 <= said.tokens[:, 1::2].min()
    logp, entropy = encoder.token_logprobs(images, said, temperature=1.0)
    torch.testing.assert_close(logp, said.logp, atol=1e-4, rtol=1e-4)
    assert entropy[:, 1::2].max() <= torch.tensor(8.0).log() + 1e-4 and entropy.isfinite().all()
    assert encoder.words(24, 18)[:3] == [range(16), range(16, 24), range(16)]
    wrong = " ".join(reversed(said.texts[0].split()))
    with pytest.raises(ValueError, match="reads 9 codes, v0 to v15 and as many, v16 to v23, and no language"):
        encoder.tokenize([wrong])


def test_two_saved_levels_come_back(make_codes, images, tmp_path):
    # red if the second codebook is not saved, or that of another block is read
    encoder = make_codes(detail=Detail(1, SimVQ(8)))
    with torch.no_grad():
        for parameter in (encoder.where, *encoder.detail.parameters()):
            parameter.add_(0.1)
    encoder.save(tmp_path)
    again = make_codes(detail=Detail(1, SimVQ(4)), path=str(tmp_path))
    torch.testing.assert_close(again.quantize(images)[1], encoder.quantize(images)[1])
    for detail in (None, Detail(0, SimVQ(8)), Detail(1, BSQ(3))):
        with pytest.raises(ValueError, match="of another codebook"):
            make_codes(detail=detail, path=str(tmp_path))
    with pytest.raises(ValueError, match="the vision tower has 4 blocks: set it to 0 to 3"):
        make_codes(detail=Detail(4, SimVQ(8)))


def test_a_block_is_seen_in_the_order_of_the_features(parts_folder):
    # red if windows stay in the tower's order: the code of a place would be of another one
    vision = QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS | {"max_pixels": 128 * 160})
    pictures = torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))  # 4 x 5 places, windows of 3 x 3
    seen, block = vision.see_block(pictures, 3)
    assert block.shape == (2, 20, vision.block_width(3))
    merged = vision.model.model.visual.merger(block.reshape(-1, 160))
    torch.testing.assert_close(merged.view_as(seen.features), seen.features)


def test_places_must_be_those_of_the_tower(make_codes, images):
    # red without the check: the places would be broadcast or cut
    encoder = make_codes()
    encoder.count = 8
    with pytest.raises(ValueError, match="set model.autoencoder.encoder.places to 9"):
        encoder.see(images)
