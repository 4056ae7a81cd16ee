"""Detectors: the scene detector against the scene graph, and each family of transformers against its plain use."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.mask2former import modeling_mask2former
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from uae_lightning.evaluation import object_detectors
from uae_lightning.evaluation.object_detectors import (
    CLIP_COLORS,
    MAX_OBJECTS,
    TransformersDetector,
)
from uae_lightning.scenes.object_detector import SceneObjectDetector, cell_box
from uae_lightning.scenes.scene import render, sample_scene

LABELS = {0: "cat", 1: "aeroplane", 2: "mouse"}
NAMES = ("cat", "airplane", "computer mouse")
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EOS = 40


def random_model(model_class, config, std=0.3):
    """With large weights: fresh ones are so small that all objects look alike to the model."""
    torch.manual_seed(0)
    model = model_class(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def natural(seed, height=64, width=64):
    """[2, 3, H, W] smooth random pictures of 8-bit values."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).round() / 255


def as_pil(images):
    return [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in images]


def tokenizer(length):
    """Word-level, with a start and an end token as CLIP's: the end has the highest index."""
    words = "[pad] <s> a photo of object - colored airplane cat computer mouse".split() + list(CLIP_COLORS)
    vocabulary = {word: index for index, word in enumerate(words)} | {"</s>": EOS}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", EOS)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[pad]", model_max_length=length)


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


# ----------------------------------------------------------------------------------------------------------- scenes


def test_scene_objects_are_those_of_the_graph():
    # Red if `cell // 3` and `cell % 3` change places in cell_box, SIZES[size] / 2 becomes SIZES[size], or the color of
    # one cell is read from another.
    scenes = [sample_scene("test", 0, index, max_objects=4) for index in range(40)]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    found = SceneObjectDetector().detect(images)
    wanted = [{(o.name, cell_box(o.cell, o.size), o.color) for o in scene.objects} for scene in scenes]
    right = [{(o.name, o.box, o.color) for o in objects} == graph for objects, graph in zip(found, wanted, strict=True)]
    assert np.mean(right) >= 0.95
    for objects in found:
        scores = [item.score for item in objects]
        assert scores == sorted(scores, reverse=True) and all(0.25 < value <= 1 for value in scores)


def test_boxes_are_where_the_glyphs_are():
    # Red if cell_box has x and y swapped.
    assert cell_box(2, "large") == (66, 2, 94, 30)  # top right
    assert cell_box(7, "small") == (39, 71, 57, 89)  # bottom center


# ------------------------------------------------------------------------------------------- models of transformers


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=24, id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    processor = DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return save(tmp_path_factory.mktemp("detr"), random_model(hf.DetrForObjectDetection, config), processor)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """Saved from the class that the hub's checkpoints are of, training loss included."""
    backbone = hf.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12, id2label=LABELS,
        label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "requires_backends", lambda *_: None)  # its loss asks for scipy
        model = random_model(hf.Mask2FormerForUniversalSegmentation, config)
    processor = Mask2FormerImageProcessorPil(size={"height": 64, "width": 64})
    folder = tmp_path_factory.mktemp("mask2former")
    return save(folder, model, processor), model


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    text = {**WIDTH, "vocab_size": EOS + 1, "max_position_embeddings": 12}
    vision = {**WIDTH, "image_size": 64, "patch_size": 16}
    config = hf.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    model = random_model(hf.Owlv2ForObjectDetection, config, std=0.15)  # 0.3 drives many scores to 1.0
    processor = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    return save(tmp_path_factory.mktemp("owlv2"), model, processor, tokenizer(12))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    text = {**WIDTH, "vocab_size": EOS + 1, "max_position_embeddings": 16, "eos_token_id": EOS, "bos_token_id": 1}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**WIDTH, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(tmp_path_factory.mktemp("clip"), random_model(hf.CLIPModel, config), processor, tokenizer(16))


def flat(found):
    """Names, then numbers [M, 5], of the objects of one picture."""
    return [item.name for item in found], torch.tensor([[item.score, *item.box] for item in found])


def assert_equal(found, expected):
    """`expected`: (name, score, box), in any order."""
    expected = sorted(expected, key=lambda item: -item[1])
    assert expected  # so that the rest says something
    names, numbers = flat(found)
    assert names == [name for name, _, _ in expected]
    torch.testing.assert_close(
        numbers, torch.tensor([[value, *box] for _, value, box in expected]), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("height, width", [(64, 64), (48, 80)])
def test_detr_equals_its_plain_use(detr, height, width):
    # Red if target_sizes has width before height, GENEVAL_NAMES is not used, or scores and labels change places.
    images = natural(0, height, width)
    found = TransformersDetector(detr, threshold=0.1, micro_batch=1).detect(images)
    model = hf.DetrForObjectDetection.from_pretrained(detr).eval()
    processor = DetrImageProcessorPil.from_pretrained(detr)
    for image, objects in zip(as_pil(images), found, strict=True):
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        result = processor.post_process_object_detection(outputs, threshold=0.1, target_sizes=[(height, width)])[0]
        found_plainly = zip(result["labels"], result["scores"], result["boxes"], strict=True)
        expected = [(NAMES[label], score.item(), box.tolist()) for label, score, box in found_plainly]
        best = sorted(expected, key=lambda item: -item[1])
        kept = [item for i, item in enumerate(best) if sum(other[0] == item[0] for other in best[:i]) < MAX_OBJECTS]
        assert_equal(objects, kept)
        assert all(item.color is None for item in objects)


@pytest.mark.parametrize("height, width", [(64, 64), (48, 80)])
def test_mask2former_equals_its_plain_use(mask2former, height, width):
    # Red if rows and columns change places in _box_around, + 1 goes there, return_binary_maps=True goes (instances
    # that overlap lose pixels), or a weight is not loaded.
    folder, model = mask2former
    images = natural(1, height, width)
    found = TransformersDetector(folder, threshold=0.05).detect(images)
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    for image, objects in zip(as_pil(images), found, strict=True):
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        result = processor.post_process_instance_segmentation(
            outputs, threshold=0.05, target_sizes=[(height, width)], return_binary_maps=True
        )[0]
        expected = []
        for segment, mask in zip(result["segments_info"], result["segmentation"].numpy(), strict=True):
            y, x = np.nonzero(mask)
            box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
            expected.append((NAMES[segment["label_id"]], segment["score"], box))
        assert_equal(objects, expected)


def test_nothing_found_is_an_empty_list(mask2former, detr):
    # Red if strict=False in _Masks becomes strict=True, or an empty list goes to the color reader.
    assert TransformersDetector(mask2former[0], threshold=0.9999).detect(natural(1)) == [[], []]
    assert TransformersDetector(detr, threshold=0.9999).detect(natural(1)) == [[], []]


@pytest.mark.parametrize("height, width", [(64, 64), (64, 48), (48, 64)])
def test_owlv2_equals_its_plain_use(owlv2, height, width):
    # Red if the padding is on the left or on top, boxes are scaled by the shorter side, sizes / 2 becomes sizes, or
    # the names are given in another order.
    images = natural(2, height, width)
    found = TransformersDetector(owlv2, names=NAMES, threshold=0.5).detect(images)
    model = hf.Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    processor = Owlv2ImageProcessorPil.from_pretrained(owlv2)
    texts = tokenizer(12)([f"a photo of a {name}" for name in NAMES], padding="max_length", return_tensors="pt")
    for image, objects in zip(as_pil(images), found, strict=True):
        with torch.no_grad():
            pixels = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]  # 64 x 64 once padded
            outputs = model(pixel_values=pixels, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
        result = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(height, width)])[0]
        found_plainly = zip(result["labels"], result["scores"], result["boxes"], strict=True)
        assert_equal(objects, [(NAMES[label], score.item(), box.tolist()) for label, score, box in found_plainly])


def test_sixteen_of_a_class_are_kept_and_none_at_the_threshold(detr, monkeypatch):
    # Red if MAX_OBJECTS counts all classes together, `-instance.score` loses its minus, or > threshold becomes >=.
    detector = TransformersDetector(detr)
    many = [object_detectors._Instance("cat", 0.3 + i / 100, (0, 0, 9, 9)) for i in range(20)]
    few = [object_detectors._Instance("airplane", 0.31, (0, 0, 9, 9))]
    monkeypatch.setattr(detector.finder, "forward", lambda images, threshold: [many + few] * len(images))
    objects = detector.detect(natural(0))[0]
    assert [item.name for item in objects].count("cat") == 16 and objects[-1].name == "airplane"
    assert objects[0].score == pytest.approx(0.49) and min(item.score for item in objects) == pytest.approx(0.31)
    many[:] = many[:1]
    assert [item.name for item in detector.detect(natural(0))[0]] == ["airplane"]


# ----------------------------------------------------------------------------------------------------------- colors


def plain_colors(folder, pictures, name):
    """CLIP's zero-shot classification of pictures, as its documentation has it."""
    model, processor = hf.CLIPModel.from_pretrained(folder).eval(), hf.CLIPImageProcessorPil.from_pretrained(folder)
    pixels, sums = processor(pictures, return_tensors="pt")["pixel_values"], 0
    for template in ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object"):
        texts = [template.format(color, name) for color in CLIP_COLORS]
        tokens = tokenizer(16)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(tokens["input_ids"], pixels, tokens["attention_mask"])
        sums = sums + F.normalize(output.text_embeds, dim=-1)
    scores = output.image_embeds @ F.normalize(sums / 3, dim=-1).T
    return [CLIP_COLORS[index] for index in scores.argmax(-1).tolist()]


def test_colors_are_clip_s_of_the_crop(detr, clip, monkeypatch):
    # Red if x and y change places in _crop, the templates lose the name, or the colors of one class serve all.
    detector = TransformersDetector(detr, color_model=clip)
    boxes = [(8 * i, 3 * i, 8 * i + 20 + i, 3 * i + 30) for i in range(8)]
    images = torch.cat([natural(seed, 60, 80) for seed in range(3)])
    seen = set()
    for name in NAMES:
        instances = [object_detectors._Instance(name, 0.9 - i / 100, box) for i, box in enumerate(boxes)]
        monkeypatch.setattr(detector.finder, "forward", lambda images, _, found=instances: [found] * len(images))
        colors = [item.color for objects in detector.detect(images) for item in objects]
        crops = [picture.crop(box) for picture in as_pil(images) for box in boxes]
        agreed = np.mean([a == b for a, b in zip(colors, plain_colors(clip, crops, name), strict=True)])
        assert agreed >= 0.9  # the processors round to 8 bits
        seen.add(tuple(colors))
    assert len(seen) == len(NAMES) and len(set(colors)) >= 3  # so that the line above says something


def test_masked_objects_are_cut_out_on_gray():
    # Red if image and GRAY change places in _crop, or its box is not kept inside the picture.
    image = torch.full((3, 8, 8), 0.2)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 1:7] = True
    cut = object_detectors._crop(image, object_detectors._Instance("cat", 1.0, (1, 1, 7, 4), mask))
    assert cut.shape == (3, 3, 6) and torch.all(cut[:, 0] == 0.6) and torch.all(cut[:, 1:] == 0.2)
    for box in ((-3, -3, 2, 2), (7.6, 7.9, 12, 12), (3, 3, 3, 3)):
        part = object_detectors._crop(image, object_detectors._Instance("cat", 1.0, box))
        assert 1 <= part.shape[1] <= 2 and 1 <= part.shape[2] <= 2


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("option", ["model", "color_model"])
def test_missing_weights_say_what_to_do(option, detr, tmp_path, monkeypatch):
    # Red if `except OSError` goes.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for missing in (str(tmp_path / "nothing"), "no-such-owner/no-such-model"):
        with pytest.raises(FileNotFoundError, match=f"{option}=.*no.*preprocessor_config.*download"):
            TransformersDetector(**{"model": detr, option: missing})


def test_missing_preprocessor_and_tokenizer_are_named(detr, owlv2, tmp_path):
    # Red if AutoImageProcessor or AutoTokenizer is called without _pretrained.
    hf.DetrForObjectDetection.from_pretrained(detr).save_pretrained(tmp_path / "detr")
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        TransformersDetector(str(tmp_path / "detr"))
    save(tmp_path / "owl", hf.Owlv2ForObjectDetection.from_pretrained(owlv2), Owlv2ImageProcessorPil())
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        TransformersDetector(str(tmp_path / "owl"), names=NAMES)


def test_wrong_models_and_names_are_refused(detr, owlv2, clip, tmp_path):
    # Red if one of the checks in _finder goes.
    with pytest.raises(ValueError, match="clip, which finds no objects"):
        TransformersDetector(clip)
    with pytest.raises(ValueError, match="give `names`"):
        TransformersDetector(owlv2)
    with pytest.raises(ValueError, match="leave `names` out"):
        TransformersDetector(detr, names=NAMES)
    vision = hf.CLIPVisionModel(hf.CLIPVisionConfig(**WIDTH, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match="color_model=.*both"):
        TransformersDetector(detr, color_model=save(tmp_path, vision))


def test_judges_say_what_they_know_and_stay_frozen(detr, owlv2, clip):
    # Red if GENEVAL_NAMES is not used, colors are claimed without a color model, or train() is not overridden.
    plain, colored = TransformersDetector(detr), TransformersDetector(owlv2, names=("cat",), color_model=clip)
    assert set(plain.names) == set(NAMES) and plain.colors == ()
    assert colored.names == ("cat",) and colored.colors == CLIP_COLORS
    for detector in (plain, colored, SceneObjectDetector()):
        detector.train()
        assert not any(module.training for module in detector.modules())
        assert not any(parameter.requires_grad for parameter in detector.parameters())
