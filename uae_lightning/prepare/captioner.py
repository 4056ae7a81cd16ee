"""Any image-text-to-text model of transformers: pictures -> captions."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, BatchFeature, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from uae_lightning.models.adapters import to_dtype
from uae_lightning.models.control_tokens import ForeignText
from uae_lightning.models.loading import load
from uae_lightning.models.quantization import Quantization, freeze_4bit
from uae_lightning.models.token_sampling import end_tokens, is_end
from uae_lightning.paths import resolve
from uae_lightning.prepare.filters import Caption
from uae_lightning.prepare.processor import load_processor, with_places

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # that are wanted of a model on the hub


class Captioner:
    """A model with its processor and chat template, asked the same about every picture.

    Args:
        model: folder, hub id, or shipped:NAME.
        prompt: what it is asked.
        max_new_tokens: longer captions are cut there, and not finished.
        temperature: 0 is greedy. All else is as the model's generation_config.json has it.
        dtype: of the weights; "auto" is bfloat16 on a GPU and float32 without.
        quantization: of the linear layers, by bitsandbytes.

    Raises:
        FileNotFoundError: `model` names none that can be had.
        ValueError: it is no image-text-to-text model, or does not fit on the GPUs; `prompt` holds control tokens.
    """

    def __init__(
        self,
        model: str,
        prompt: str,
        max_new_tokens: int,
        temperature: float,
        dtype: str = "auto",
        quantization: Quantization = "none",
    ) -> None:
        folder = resolve(model, FILES)
        self.processor = load_processor(folder)
        self.foreign_text = ForeignText(self.processor.tokenizer)
        if found := self.foreign_text.control.search(prompt):
            raise ValueError(f"--prompt holds {found[0]}, which {model} takes for a control token: leave it out")
        self.model = load_model(folder, dtype, quantization)
        self.prompt = prompt
        self.sampling = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        greedy = dict.fromkeys(("temperature", "top_p", "top_k"))  # None: what the model's settings say does not apply
        self.sampling |= {"temperature": temperature} if temperature else greedy
        self.ends = end_tokens(self.model.generation_config, self.processor.tokenizer)
        self.sampling["eos_token_id"] = self.ends

    @torch.no_grad()
    def __call__(self, pictures: list[Image.Image]) -> list[Caption]:
        """Captions of RGB pictures; where sampling is random, from torch's global generator.

        Raises:
            ValueError: the batch does not fit into memory.
        """
        inputs = self.inputs(pictures)
        prompt = inputs["input_ids"]
        try:
            tokens = self.model.generate(**inputs, **self.sampling)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of GPU memory with {len(pictures)} pictures at a time: run the same command with a smaller "
                "--batch-size, and what is finished stays"
            ) from error
        if tokens.shape[1] > prompt.shape[1] and torch.equal(tokens[:, : prompt.shape[1]], prompt):
            tokens = tokens[:, prompt.shape[1] :]  # else the model gave back the new tokens alone
        finished = is_end(tokens, self.ends).any(1).tolist()
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        held = [self.foreign_text.with_control([text]) > 0 for text in texts]
        return [Caption(text.strip(), *facts) for text, *facts in zip(texts, finished, held, strict=True)]

    def inputs(self, pictures: list[Image.Image]) -> BatchFeature:
        """What the model takes, on its device, padded on the left."""
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": self.prompt}]}]
            for picture in pictures
        ]
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        vision = getattr(self.model.config, "vision_config", None)
        if getattr(vision, "in_channels", 3) == 5:  # the shipped encoder
            inputs["pixel_values"] = with_places(
                inputs["pixel_values"], inputs["image_grid_thw"], vision.patch_size, vision.spatial_merge_size
            )
        return inputs.to(self.model.device, self.model.dtype)


def load_model(folder: Path, dtype: str, quantization: Quantization) -> PreTrainedModel:
    """On the GPUs of this machine, layer by layer where it takes several, or else on the CPU."""
    disable_progress_bar()  # of loading
    gpu, options = torch.cuda.is_available(), {"trust_remote_code": False}
    if gpu:
        options["device_map"] = "auto"
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit", bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if gpu else torch.float32,
        )  # fmt: skip
    kind = ("bfloat16" if gpu else "float32") if dtype == "auto" else dtype
    try:
        model = load(AutoModelForImageTextToText, folder, to_dtype(kind), **options)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used as --model: {str(error).splitlines()[0]}") from error
    freeze_4bit(model)
    if gpu and {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())):
        raise ValueError(f"{folder} does not fit on the GPU: try --quantization 4bit, or a smaller --model")
    return model
