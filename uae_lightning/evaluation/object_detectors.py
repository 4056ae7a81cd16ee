"""Which objects are in a picture, where, and of what color: the judges behind the GenEval score.

`SceneObjectDetector` knows the scenes of the embedded default. `TransformersDetector` stands in for the mmdet model of
GenEval (arXiv 2310.11513) and knows everyday objects.

Symbols: N pictures [N, 3, H, W] in [0, 1], M objects found in one of them, C class names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForObjectDetection,
    AutoTokenizer,
    BatchEncoding,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
    Mask2FormerPreTrainedModel,
    Owlv2ForObjectDetection,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING

from uae_lightning.data.scenes import CELL_CENTERS, CLASSES, COLORS, SIZES
from uae_lightning.evaluation.detector import NAMES, SceneDetector
from uae_lightning.paths import resolve
from uae_lightning.rewards.vision_features import Preprocessing

Box = tuple[float, float, float, float]

MAX_OBJECTS = 16  # of one class in a picture (GenEval code)
CLIP_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")  # GenEval code
CLIP_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GRAY = 0.6  # what surrounds a cut-out object while its color is read: #999 in the GenEval code

# COCO's classes as detectors of transformers spell them -> as GenEval's prompts have them
GENEVAL_NAMES = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv", "mouse": "computer mouse", "remote": "tv remote",
    "keyboard": "computer keyboard",
}  # fmt: skip


@dataclass(frozen=True)
class DetectedObject:
    name: str
    box: Box  # x0, y0, x1, y1 in pixels
    score: float  # confidence in [0, 1]
    color: str | None  # None where the detector reads no colors


class ObjectDetector(nn.Module, ABC):
    """Frozen, in eval mode."""

    names: tuple[str, ...]  # what it can find
    colors: tuple[str, ...]  # what it can tell apart; empty where it reads no colors
    counting_threshold: float  # objects at or below this score do not count where a prompt is about numbers

    @abstractmethod
    def detect(self, images: Tensor) -> list[list[DetectedObject]]:
        """[N, 3, H, W] in [0, 1] -> the objects of each picture, the most certain ones first."""

    def train(self, mode: bool = True) -> ObjectDetector:
        """Stays in eval mode whatever the module around it does."""
        return super().train(False)


class SceneObjectDetector(ObjectDetector):
    """Objects of the embedded default's scenes, as SceneDetector reads them.

    A box is that of the glyph in its cell. The score is that of the presence times that of the class.

    Args:
        path: folder of a SceneDetector, "shipped:NAME" or an ordinary path.
    """

    names, colors, counting_threshold = CLASSES, tuple(COLORS), 0.0

    def __init__(self, path: str | Path = "shipped:scenes/detector") -> None:
        super().__init__()
        self.detector = SceneDetector.from_folder(resolve(path)).requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[DetectedObject]]:
        logits = self.detector(images.to(self.detector.background.weight))
        presence = logits["presence"].sigmoid()  # [N, 9]
        scores = presence * logits["class"].softmax(-1).amax(-1)
        facts = {kind: logits[kind].argmax(-1).tolist() for kind in ("class", "color", "size")}
        found: list[list[DetectedObject]] = [[] for _ in images]
        for row, cell in (presence > 0.5).nonzero().tolist():
            name, color, size = (NAMES[kind][facts[kind][row][cell]] for kind in ("class", "color", "size"))
            found[row].append(DetectedObject(name, cell_box(cell, size), scores[row, cell].item(), color))
        return [sorted(objects, key=lambda item: -item.score) for objects in found]


def cell_box(cell: int, size: str) -> Box:
    """Where an object of this size lies in this cell of a scene."""
    y, x, half = CELL_CENTERS[cell // 3], CELL_CENTERS[cell % 3], SIZES[size] / 2
    return (x - half, y - half, x + half, y + half)


# ------------------------------------------------------------------------------------------------ models of the hub


class TransformersDetector(ObjectDetector):
    """A detector of transformers in place of GenEval's mmdet model; the thresholds are GenEval's.

    Three families: Mask2Former for instances (the default is the architecture and training set of GenEval's own),
    OWLv2, which finds whatever it is told to look for, and all of AutoModelForObjectDetection (DETR, YOLOS, RT-DETR,
    ...). Classes get the names that GenEval's prompts use. Neither torchvision nor scipy is needed.

    Args:
        model: hub id or local folder, with its preprocessor_config.json (for OWLv2 its tokenizer, too).
        names: what OWLv2 looks for: the classes of the prompts and those it could confuse with them. The other
            families know their classes.
        color_model: CLIP model for colors, hub id or local folder; GenEval's is openai/clip-vit-large-patch14. None
            reads no colors, and prompts that ask for some are refused.
        threshold: objects at or below this score are dropped. OWLv2's scores are lower than those of the others.
        counting_threshold: the same for prompts about numbers.
        micro_batch: pictures at a time.

    Raises:
        FileNotFoundError: weights, preprocessor_config.json or tokenizer are neither here nor to be had.
        ValueError: the model is of no such family; `names` is missing, or given to a model that knows its classes.
    """

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        names: Sequence[str] | None = None,
        color_model: str | None = None,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        micro_batch: int = 8,
    ) -> None:
        super().__init__()
        self.threshold, self.counting_threshold, self.micro_batch = threshold, counting_threshold, micro_batch
        self.finder = _finder(_folder(model, "model"), names)
        self.color_reader = None if color_model is None else _ColorReader(_folder(color_model, "color_model"))
        self.names, self.colors = self.finder.names, () if color_model is None else CLIP_COLORS
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[DetectedObject]]:
        device = next(self.finder.parameters()).device
        found = []
        for part in images.to(device, torch.float32).split(self.micro_batch):
            found += [self._describe(*pair) for pair in zip(part, self.finder(part, self.threshold), strict=True)]
        return found

    def _describe(self, image: Tensor, instances: list[_Instance]) -> list[DetectedObject]:
        kept: dict[str, list[_Instance]] = {}
        for instance in sorted(instances, key=lambda instance: -instance.score):
            if instance.score > self.threshold and len(kept.setdefault(instance.name, [])) < MAX_OBJECTS:
                kept[instance.name].append(instance)
        best = sorted((instance for group in kept.values() for instance in group), key=lambda item: -item.score)
        colors = self.color_reader(image, best) if self.color_reader and best else [None] * len(best)
        return [DetectedObject(i.name, i.box, i.score, color) for i, color in zip(best, colors, strict=True)]


@dataclass(frozen=True)
class _Instance:
    name: str
    score: float
    box: Box
    mask: Tensor | None = None  # [H, W] bool


def _finder(model: str, names: Sequence[str] | None) -> nn.Module:
    """The family's module: (images [N, 3, H, W], threshold) -> instances of each picture."""
    config = _pretrained(AutoConfig, model, "model")
    if config.model_type == "owlv2":
        if not names:
            raise ValueError(f"model={model!r} finds what it is told to: give `names`, the classes of the prompts")
        return _OpenVocabulary(model, tuple(names))
    if names is not None:
        raise ValueError(f"model={model!r} knows its own classes: leave `names` out, or give an OWLv2 model")
    if config.model_type == "mask2former":
        return _Masks(model)
    if type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ValueError(
            f"model={model!r} is a {config.model_type}, which finds no objects: give a Mask2Former, an OWLv2 or a "
            "model of AutoModelForObjectDetection, such as DETR"
        )
    return _Boxes(model)


class _Boxes(nn.Module):
    """AutoModelForObjectDetection: boxes of known classes."""

    loader: type = AutoModelForObjectDetection

    def __init__(self, model: str) -> None:
        super().__init__()
        self.network = _pretrained(self.loader, model, "model", dtype=torch.float32)
        self.processor = _pretrained(AutoImageProcessor, model, "model", backend="pil")
        labels = self.network.config.id2label
        self.labels = {index: GENEVAL_NAMES.get(label, label) for index, label in labels.items()}
        self.names = tuple(self.labels.values())

    def forward(self, images: Tensor, threshold: float) -> list[list[_Instance]]:
        pictures = [Image.fromarray(image.numpy()) for image in _as_bytes(images)]
        inputs = self.processor(images=pictures, return_tensors="pt").to(images.device)
        return self.read(self.network(**inputs), threshold, [tuple(images.shape[2:])] * len(images))

    def read(self, outputs, threshold: float, sizes: list[tuple[int, int]]) -> list[list[_Instance]]:
        results = self.processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [
            [
                _Instance(self.labels[label], score, tuple(box))
                for label, score, box in zip(*(result[k].tolist() for k in ("labels", "scores", "boxes")), strict=True)
            ]
            for result in results
        ]


class _Mask2Former(Mask2FormerPreTrainedModel):
    """Mask2FormerForUniversalSegmentation without its training loss, which scipy would have to be installed for."""

    _keys_to_ignore_on_load_unexpected = ["criterion"]
    forward = Mask2FormerForUniversalSegmentation.forward
    get_auxiliary_logits = Mask2FormerForUniversalSegmentation.get_auxiliary_logits

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()


class _Masks(_Boxes):
    """Mask2Former for instances: masks of known classes, and the boxes around them."""

    loader = _Mask2Former

    def read(self, outputs, threshold: float, sizes: list[tuple[int, int]]) -> list[list[_Instance]]:
        for name in ("class_queries_logits", "masks_queries_logits"):
            outputs[name] = outputs[name].cpu()  # the processor collects masks there
        results = self.processor.post_process_instance_segmentation(
            outputs, threshold=threshold, target_sizes=sizes, return_binary_maps=True
        )
        return [
            [
                _Instance(self.labels[segment["label_id"]], segment["score"], _box_around(mask), mask)
                # where nothing was found, the maps are one empty map of another shape
                for segment, mask in zip(result["segments_info"], result["segmentation"].bool(), strict=False)
            ]
            for result in results
        ]


class _OpenVocabulary(nn.Module):
    """OWLv2: boxes of whatever `names` says. Its image processor would need scipy, so pictures are prepared here."""

    def __init__(self, model: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.network = _pretrained(Owlv2ForObjectDetection, model, "model", dtype=torch.float32)
        self.preprocess = Preprocessing.of(model)
        tokens = _tokenizer(model, "model", self.network)([f"a photo of a {name}" for name in names])
        self.register_buffer("tokens", tokens["input_ids"], persistent=False)  # [C, L]
        self.register_buffer("mask", tokens["attention_mask"], persistent=False)

    def forward(self, images: Tensor, threshold: float) -> list[list[_Instance]]:
        height, width = images.shape[2:]
        side = max(height, width)
        square = F.pad(images, (0, side - width, 0, side - height))  # to the right and below, where no box lies
        texts = {"input_ids": self.tokens.repeat(len(images), 1), "attention_mask": self.mask.repeat(len(images), 1)}
        outputs = self.network(pixel_values=self.preprocess(square), **texts)
        scores, labels = outputs.logits.sigmoid().max(-1)  # [N, Q]
        centers, sizes = (outputs.pred_boxes * side).split(2, -1)  # [N, Q, 2]
        boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], -1)
        found: list[list[_Instance]] = [[] for _ in images]
        for row, query in (scores > threshold).nonzero().tolist():
            name, box = self.names[labels[row, query]], tuple(boxes[row, query].tolist())
            found[row].append(_Instance(name, scores[row, query].item(), box))
        return found


class _ColorReader(nn.Module):
    """The color of an object, by CLIP: its crop, on gray where there is a mask, against texts that name the colors."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.network = _pretrained(AutoModel, model, "color_model", dtype=torch.float32)
        if not hasattr(self.network, "get_text_features"):
            raise ValueError(f"color_model={model!r} does not read texts: give a CLIP model with both of its towers")
        self.tokenizer = _tokenizer(model, "color_model", self.network)
        self.preprocess = Preprocessing.of(model)
        self.of_class: dict[str, Tensor] = {}  # name -> [colors, E]

    def forward(self, image: Tensor, instances: list[_Instance]) -> list[str]:
        """[3, H, W], M objects in it -> M colors."""
        crops = torch.cat([self.preprocess(_crop(image, instance)[None]) for instance in instances])
        features = _features(self.network.get_image_features(pixel_values=crops))  # [M, E]
        texts = torch.stack([self._embed_colors(instance.name) for instance in instances])  # [M, colors, E]
        best = (texts @ features[..., None]).squeeze(-1).argmax(-1)
        return [CLIP_COLORS[index] for index in best.tolist()]

    def _embed_colors(self, name: str) -> Tensor:
        if name not in self.of_class:
            texts = [prompt.format(color=color, name=name) for color in CLIP_COLORS for prompt in CLIP_PROMPTS]
            tokens = self.tokenizer(texts).to(self.network.device)
            features = _features(self.network.get_text_features(**tokens))
            self.of_class[name] = F.normalize(features.unflatten(0, (-1, len(CLIP_PROMPTS))).mean(1), dim=-1)
        return self.of_class[name]


def _features(output) -> Tensor:
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)  # a tensor before transformers 5


def _crop(image: Tensor, instance: _Instance) -> Tensor:
    """[3, H, W] -> [3, h, w], at least 1 x 1."""
    height, width = image.shape[1:]
    x0, y0, x1, y1 = (round(value) for value in instance.box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    cut_out = image if instance.mask is None else torch.where(instance.mask.to(image.device), image, GRAY)
    return cut_out[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _box_around(mask: Tensor) -> Box:
    """[H, W] bool, somewhere True -> the smallest box around it."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return (columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1)


def _as_bytes(images: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N, H, W, 3] uint8 on the CPU, as image processors take them."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu()


def _tokenizer(model: str, option: str, network: nn.Module) -> Callable[[list[str]], BatchEncoding]:
    """Texts -> their tokens and mask, each [texts, longest that the network reads]."""
    tokenizer = _pretrained(AutoTokenizer, model, option)
    if len(tokenizer) < 10:  # transformers makes up an empty one where the files are missing
        raise _missing(model, option)
    length = network.config.text_config.max_position_embeddings
    return partial(tokenizer, padding="max_length", truncation=True, max_length=length, return_tensors="pt")


def _folder(model: str, option: str) -> str:
    try:
        return str(resolve(model, ["*.json", "*.txt", "*.safetensors", "*.model"]))
    except FileNotFoundError as error:
        raise _missing(model, option) from error


def _pretrained(loader: type, model: str, option: str, **options):
    try:
        return loader.from_pretrained(model, **options)
    except OSError as error:  # what transformers raises for a missing folder, file or connection
        raise _missing(model, option) from error


def _missing(model: str, option: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"TransformersDetector: {option}={model!r} is incomplete or not here. Give a local folder with config.json, "
        "model.safetensors, preprocessor_config.json and, where texts are read, the tokenizer, or download the hub "
        f"model once with a connection and HF_HUB_OFFLINE unset (`hf download {model}`)"
    )
