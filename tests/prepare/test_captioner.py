"""Models of other families than the shipped one, tiny and random, through the same captioner."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from caption_sets import scene
from PIL import Image

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.paths import resolve
from uae_lightning.prepare.captioner import Captioner
from uae_lightning.prepare.processor import load_processor
from uae_lightning.scenes.bootstrap.captioner import PATCH, build_tokenizer, scenes_encoder
from uae_lightning.scenes.scene import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).parents[1] / "conf"))
from small_models import save_qwen  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SHIPPED, PROMPT = "shipped:scenes/encoder", "describe the picture"


def save_llava(folder: Path) -> None:
    """CLIP before Llama: pictures of one size, and a processor that reads no videos."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    token = tokenizer.convert_tokens_to_ids
    text = hf.LlamaConfig(
        **SIZE, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
    )  # fmt: skip
    vision = hf.CLIPVisionConfig(**SIZE, image_size=28, patch_size=14)
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=token("<image>"), vision_feature_layer=-1
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    hf.LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module", params=[save_qwen, save_llava], ids=["qwen", "llava"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    request.param(folder)
    return folder


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))


def test_any_model_captions_pictures_of_any_size(folder: Path):
    # red if padding_side is left at "right", or the video processor is asked for
    captioner = Captioner(str(folder), PROMPT, max_new_tokens=6, temperature=0.0)
    pictures = [noise(64, 64), noise(140, 60), noise(30, 200)]
    together = captioner(pictures)
    assert all(caption.text and PROMPT not in caption.text for caption in together)
    assert together == [captioner([picture])[0] for picture in pictures]


def test_what_is_cut_off_is_not_finished(folder: Path):
    # red if `finished` looks at the prompt too: it holds <|im_end|>
    captioner = Captioner(str(folder), PROMPT, max_new_tokens=3, temperature=0.0)
    assert [caption.finished for caption in captioner([noise(64, 64)])] == [False]
    ids = captioner.model.generate(**captioner.inputs([noise(64, 64)]), max_new_tokens=3, do_sample=False)
    captioner.ends = [int(ids[0, -1])]
    assert captioner([noise(64, 64)])[0].finished


def test_sampled_captions_come_from_the_global_seed(folder: Path):
    # red if do_sample is False
    captioner = Captioner(str(folder), PROMPT, max_new_tokens=12, temperature=1.0)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(captioner([noise(64, 64)])[0].text)
    assert texts[0] == texts[1] != texts[2]


def test_the_shipped_encoder_sees_what_it_saw_in_training():
    # red if rows and columns are swapped in `with_places`, or the places come before the colors
    captioner = Captioner(SHIPPED, PROMPT, max_new_tokens=48, temperature=0.0)
    encoder = scenes_encoder(SHIPPED)
    scenes = [scene(index) for index in range(3)]
    for pictures in (scenes, [noise(2 * PATCH, IMAGE_SIZE)]):
        images = torch.stack([torch.from_numpy(np.asarray(p) / np.float32(255)).permute(2, 0, 1) for p in pictures])
        inputs, (patches, grid) = captioner.inputs(pictures), encoder.patchify(images)
        torch.testing.assert_close(inputs["pixel_values"], patches)
        assert torch.equal(inputs["image_grid_thw"], grid)
        encoded = encoder.generate(images, samples=1, temperature=0.0, max_new_tokens=48, seed=0).texts
        assert [caption.text for caption in captioner(pictures)] == encoded


def test_every_end_token_of_the_generation_config_ends_a_caption(tmp_path: Path):
    # red if encoder or captioner look at one of them alone, or `end.long()` goes from the encoder's mask
    picture = scene(0)
    image = torch.from_numpy(np.asarray(picture) / np.float32(255)).permute(2, 0, 1)[None]
    folder = shutil.copytree(resolve(SHIPPED), tmp_path / "encoder")
    config = json.loads((folder / "generation_config.json").read_text())

    def encoded():
        encoder = QwenVLEncoder(str(folder), caption_system="", caption_prompt=PROMPT, max_pixels=IMAGE_SIZE**2)
        captions = encoder.generate(image, samples=2, temperature=0.0, max_new_tokens=48, seed=0)
        tokens = captions.tokens[0][captions.mask[0]].tolist()
        assert len(tokens) == captions.tokens.shape[1]  # nothing is drawn behind the end
        return captions.texts[0], tokens

    _, whole = encoded()
    for named in ([config["eos_token_id"], whole[0]], whole[0]):
        (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": named}))
        text, tokens = encoded()
        assert tokens == whole[:1] and text
        [caption] = Captioner(str(folder), PROMPT, max_new_tokens=48, temperature=0.0)([picture])
        assert caption.finished and caption.text == text
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 10_000}))
    assert encoded()[1] == whole  # by the end token of the tokenizer
    [caption] = Captioner(str(folder), PROMPT, max_new_tokens=48, temperature=0.0)([picture])
    assert caption.finished


def test_control_tokens_of_others_are_named_or_counted(monkeypatch):
    # red if the prompt is not looked at, or `with_control` goes from the captions
    with pytest.raises(ValueError, match=r"--prompt holds <\|im_end\|>"):
        Captioner(SHIPPED, "describe<|im_end|>", 4, 0.0)
    captioner = Captioner(SHIPPED, PROMPT, max_new_tokens=4, temperature=0.0)
    tokenizer = captioner.processor.tokenizer
    monkeypatch.setattr(type(tokenizer), "batch_decode", lambda *_, **__: ["a sign <|im_end|>", "a sign"])
    assert [caption.control for caption in captioner([scene(0), scene(1)])] == [True, False]


def test_a_quantized_model_captions():
    # red if quantization_config is not passed on
    captioner = Captioner(SHIPPED, PROMPT, max_new_tokens=6, temperature=0.0, quantization="4bit")
    assert any("4bit" in type(module).__name__ for module in captioner.model.modules())
    assert captioner([scene(0)])[0].text


def test_models_that_cannot_caption_are_refused(tmp_path: Path, parts_folder: Path):
    # red if the chat template, or the image processor, is not asked for
    with pytest.raises(ValueError, match="no chat template.*--model"):
        Captioner("shipped:scenes/clip", PROMPT, 4, 0.0)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_processor(tmp_path)
    with pytest.raises(FileNotFoundError, match="no/where"):
        Captioner("./no/where", PROMPT, 4, 0.0)
