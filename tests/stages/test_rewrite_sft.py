"""Fine-tuning on prompt -> complete caption."""

import pytest
import torch
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.rewrite_sft import RewriteSFT
from uae_lightning.types import Batch, Learn, LoRA

CAPTIONS = ["a red cat .", "the background is sand ."]
BATCH = Batch(torch.zeros(2, 3, 0, 0), CAPTIONS, ["one", "two"], prompts=["cat", "a bus"])


@pytest.fixture
def make_stage(make_encoder, make_projector, make_decoder):
    def make(**options) -> RewriteSFT:
        options = {"learn": Learn(encoder=LoRA(rank=4, alpha=8)), "captioning": Captioning(0.0, 16)} | options
        stage = staged(RewriteSFT, make_encoder(), make_projector(), make_decoder(), **options)
        stage.log = lambda *args, **kwargs: None
        return stage

    return make


def test_the_loss_is_the_cross_entropy_of_caption_and_end_given_the_prompt(make_stage):
    # red without the end, with padding in the mean, with prompts and captions turned round, or a mean over captions
    stage = make_stage()
    encoder, errors = stage.encoder, []
    with torch.no_grad():
        for prompt, caption in zip(BATCH.prompts, BATCH.captions, strict=True):
            asked, said = encoder.ask([prompt]).tokens, encoder.tokenize([caption]).tokens
            said = torch.cat([said, said.new_tensor([[encoder.tokenizer.eos_token_id]])], 1)
            logits = encoder.model(input_ids=torch.cat([asked, said], 1), use_cache=False).logits[0]
            logits[:, encoder.never_sampled] = torch.finfo(logits.dtype).min
            errors.append(torch.nn.functional.cross_entropy(logits[asked.shape[1] - 1 : -1], said[0], reduction="none"))
    torch.testing.assert_close(stage.training_step(BATCH, 0).detach(), torch.cat(errors).mean(), atol=1e-4, rtol=1e-4)


def test_it_learns_what_to_say_and_where_to_end(make_stage):
    # red if the loss has no gradient for the encoder, or the end is not learnt: the captions would go on
    stage = make_stage()
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        stage.training_step(BATCH, 0).backward()
        optimizer.step()
    moved = {name.split(".")[1] for name, p in stage.named_parameters() if p.grad is not None}
    assert moved == {"encoder"}
    captions = stage.autoencoder.rewrite(BATCH.prompts)
    assert captions.texts == BATCH.captions and not captions.cut.any(), stage.training_step(BATCH, 0)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(BATCH.images, BATCH.captions, BATCH.keys),
        Batch(BATCH.images, BATCH.captions, BATCH.keys, prompts=["cat", ""]),
        Batch(BATCH.images, ["a red cat .", ""], BATCH.keys, prompts=BATCH.prompts),
    ],
)
def test_a_batch_without_pairs_is_refused(make_stage, batch):
    # red if an empty text is taken for a prompt or a caption
    with pytest.raises(ValueError, match="lacks one of both: .* data.init_args.prompt_column"):
        make_stage().training_step(batch, 0)


def test_scenes_have_pairs(make_stage):
    # red if the data gives no prompts
    batch = next(iter(ScenesData(batch_size=2).train_dataloader()))
    assert 0 < make_stage().training_step(batch, 0).item() < 20
