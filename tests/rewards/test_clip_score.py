"""ClipScore and PickScore against transformers used the plain way, on small random models in hub layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from test_hub_models import CLIP_PROCESSOR, SQUARE, TEXT, VISION, with_large_weights
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from uae_lightning.rewards.clip_score import ClipScore
from uae_lightning.rewards.pick_score import PickScore
from uae_lightning.types import RewardInput

TEXTS = ["a red cat", "two dogs", "a red cat", "a red cat left of two dogs and a bus"]
PLACES = 8


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """A word is a token; an end of text behind them, as CLIP has it."""
    words = ["<pad>", "<end>", "a", "red", "cat", "two", "dogs", "left", "of", "and", "bus", "unknown"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="unknown"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="unknown")


def save(kind: str, folder: Path) -> tuple[torch.nn.Module, hf.PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    text = TEXT | {"max_position_embeddings": PLACES, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "clip":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
        hf.CLIPImageProcessorPil(**CLIP_PROCESSOR).save_pretrained(folder)
    else:
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
        hf.SiglipImageProcessorPil(**SQUARE).save_pretrained(folder)
    with_large_weights(model).save_pretrained(folder)
    words = tokenizer()
    words.save_pretrained(folder)
    return model, words


def pictures() -> torch.Tensor:
    levels = torch.randint(0, 256, (len(TEXTS), 3, 48, 40), generator=torch.Generator().manual_seed(1))
    return levels / 255


@torch.no_grad()
def plain(model: torch.nn.Module, words: hf.PreTrainedTokenizerFast, processor, images: torch.Tensor) -> torch.Tensor:
    """Logits of each picture with its own text, as the model's documentation computes them."""
    padding = "max_length" if isinstance(model, hf.SiglipModel) else True
    tokens = words(TEXTS, padding=padding, max_length=PLACES, truncation=True, return_tensors="pt")
    asked = {"input_ids": tokens["input_ids"]}
    if padding is True:
        asked["attention_mask"] = tokens["attention_mask"]
    files = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    pixels = processor(files, return_tensors="pt")["pixel_values"]
    return model(**asked, pixel_values=pixels).logits_per_image.diagonal()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_those_of_transformers(kind, tmp_path):
    # red without normalising, with padding that is read, with the texts in another order, or one text for two pictures
    model, words = save(kind, tmp_path)
    images, score = pictures(), ClipScore(str(tmp_path), micro_batch=3)
    assert not score.needs_originals
    found = score(RewardInput(torch.zeros(4, 3, 0, 0), images, TEXTS))
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    bias = model.logit_bias if kind == "siglip" else 0.0
    expected = (plain(model, words, processor, images) - bias) / model.logit_scale.exp()
    torch.testing.assert_close(found.parts["clip_score"], expected.detach(), atol=2e-2, rtol=0)  # 8 bits of the picture
    assert found.total.std() > 0.05


def test_pick_score_is_scaled_and_has_a_tokenizer_from_elsewhere(tmp_path):
    # red without the logit scale, or if the tokenizer is looked for beside the weights
    model, words = save("clip", tmp_path / "all")
    model.logit_scale.data.fill_(4.0)
    model.save_pretrained(tmp_path / "weights")
    images = pictures()
    score = PickScore(str(tmp_path / "weights"), processor=str(tmp_path / "all"))
    found = score(RewardInput(torch.zeros(4, 3, 0, 0), images, TEXTS)).parts["pick_score"]
    cosine = ClipScore(str(tmp_path / "all"))(RewardInput(torch.zeros(4, 3, 0, 0), images, TEXTS)).total
    torch.testing.assert_close(found, cosine * torch.tensor(4.0).exp())
    expected = plain(model, words, hf.AutoImageProcessor.from_pretrained(tmp_path / "all"), images)
    torch.testing.assert_close(found, expected, atol=2e-2 * 54.6, rtol=0)


def test_the_picture_has_a_gradient(tmp_path):
    # red with no_grad in `see`: ColdStart could not learn by it
    save("clip", tmp_path)
    images = pictures().requires_grad_()
    ClipScore(str(tmp_path))(RewardInput(torch.zeros(4, 3, 0, 0), images, TEXTS)).total.sum().backward()
    assert images.grad.abs().sum() > 0


def test_what_is_no_clip_with_a_tokenizer(tmp_path):
    # red without the look at the tower or at the files
    vision = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**VISION, projection_dim=16))
    vision.save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="vision is a clip_vision_model: name a model with both towers"):
        ClipScore(str(tmp_path / "vision"))
    model, _ = save("clip", tmp_path / "all")
    model.save_pretrained(tmp_path / "bare")
    hf.CLIPImageProcessorPil(**CLIP_PROCESSOR).save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="ClipScore: no tokenizer in .*bare: copy .* or name with `processor`"):
        ClipScore(str(tmp_path / "bare"))
    with pytest.raises(FileNotFoundError, match="PickScore: .*nowhere.* does not exist"):
        PickScore(str(tmp_path / "nowhere"))
