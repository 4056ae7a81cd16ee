"""One step of TRL's `GRPOTrainer` with the policy, pictures and settings of `benchmarks.encoder_rl`."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.caption_steps import OwnStep, Result, reward
from uae_lightning.models.adapters import lora_config
from uae_lightning.models.qwen_vl import TEXT_LINEARS, QwenVLEncoder
from uae_lightning.scenes.bootstrap.captioner import PROMPT
from uae_lightning.types import Captions, LoRA
from uae_lightning.usage import UsageError


def import_trl(folder: Path | None) -> types.ModuleType:
    """TRL from `folder`, or the installed one.

    Raises:
        UsageError: there is none.
    """
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        import trl.trainer.grpo_trainer
    except ImportError as error:
        raise UsageError(
            f"TRL cannot be imported ({error}): `pip install 'uae-lightning[benchmarks]'`, or --trl FOLDER with a "
            "version that `pip install --target FOLDER --no-deps trl==...` put there"
        ) from error
    return trl


def make_processor(encoder: QwenVLEncoder):
    """Text and pictures to model inputs, in the form that TRL wants; patches are cut as the encoder does it.

    The processor of transformers cannot be built without torchvision, for the sake of videos.
    """
    from transformers import BatchFeature, ProcessorMixin
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    class Patches(Qwen2VLImageProcessorPil):
        def __call__(self, images, **_) -> BatchFeature:
            flat = [image for row in images for image in (row if isinstance(row, list) else [row])]
            pixels = torch.stack([torch.from_numpy(np.array(image)) for image in flat])
            patches, grid = encoder.patchify(pixels.permute(0, 3, 1, 2).float() / 255)
            return BatchFeature({"pixel_values": patches, "image_grid_thw": grid})

    class Processor(Qwen2_5_VLProcessor):
        def __init__(self, image_processor, tokenizer, chat_template=None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    tokenizer = copy.deepcopy(encoder.tokenizer)
    sizes = {"patch_size": encoder.preprocessor.patch_size, "merge_size": encoder.preprocessor.merge_size}
    return Processor(Patches(**sizes), tokenizer, chat_template=tokenizer.chat_template)


class TRLStep:
    """`GRPOTrainer` with the policy's weights and adapters, driven as its own loop would.

    Rows are not shuffled, so that what both sides compute can be compared row by row.
    """

    def __init__(self, trl: types.ModuleType, folder: Path, own: OwnStep, options, work: Path) -> None:
        from datasets import Dataset
        from PIL import Image

        trl.trainer.grpo_trainer.shuffle_sequence_dict = lambda batch: batch
        encoder, images = own.encoder, own.batch.images
        self.accumulation = options.pictures * options.group // options.micro_batch
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, options.dtype))
        lora = lora_config(LoRA(options.lora_rank, 2 * options.lora_rank), TEXT_LINEARS)
        message = [{"role": "user", "content": PROMPT}]
        self.trainer = trl.GRPOTrainer(
            model,
            self._rewards,
            self._arguments(trl, encoder, options, work),
            Dataset.from_list([{"prompt": message}]),
            processing_class=make_processor(encoder),
            peft_config=lora,
        )
        self.trainer.current_gradient_accumulation_steps = self.accumulation
        self.trainer.create_optimizer()
        self.model = self.trainer.model.train()
        self.load_adapters(encoder)
        pictures = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        self.rows = [
            {"prompt": message, "image": Image.fromarray(picture)} for picture in pictures for _ in range(options.group)
        ]
        self.prompts = [
            trl.data_utils.prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in self.rows
        ]
        self.fresh = self.trainer._generate

    def _arguments(self, trl: types.ModuleType, encoder: QwenVLEncoder, options, work: Path):
        return trl.GRPOConfig(
            output_dir=str(work),  # where nothing is written
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=self.accumulation,
            num_generations=options.group,
            max_completion_length=options.tokens,
            generation_kwargs={"suppress_tokens": encoder.never_sampled},
            beta=options.kl_beta,
            use_bias_correction_kl=False,  # the KL's estimate is weighted by the ratio then, in its gradient too
            loss_type=options.normalization,
            scale_rewards="group",
            learning_rate=options.lr,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            gradient_checkpointing=False,  # the encoder keeps its activations too
            bf16=False,  # autocast; frozen weights have the type of the encoder's
            use_cpu=options.device == "cpu",
            report_to="none",
        )

    @staticmethod
    def _rewards(prompts, completions, completion_ids: list[list[int]], **_) -> list[float]:
        return [reward(tokens) for tokens in completion_ids]

    def load_adapters(self, encoder: QwenVLEncoder) -> None:
        own = dict(encoder.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.adapters().items():
                parameter.copy_(own[name])

    def adapters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by the names that the encoder's have."""
        prefix = "base_model.model."
        return {
            name.removeprefix(prefix): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def generation(self):
        return self.fresh(self.prompts)

    def give(self, captions: Captions | None) -> None:
        """Captions to take instead of new ones; None goes back to new ones."""
        trainer = self.trainer
        trainer._generate = self.fresh
        if captions is not None:
            single_turn = trainer._generate_single_turn
            trainer._generate_single_turn = lambda *_, **__: (captions.tokens.tolist(), None)
            generated = self.fresh(self.prompts)
            trainer._generate_single_turn = single_turn
            trainer._generate = lambda prompts: generated

    def gradients(self) -> float:
        """Rollout and backward passes; returns the loss."""
        losses = [self.trainer.training_step(self.model, self.rows, None) for _ in range(self.accumulation)]
        return float(sum(losses))

    def step(self) -> None:
        self.gradients()
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.model.zero_grad()

    def modules_to_count(self) -> dict[str, nn.Module]:
        model = self.model.get_base_model().model
        return {"text": model.language_model, "vision": model.visual}


def trl_result(other: TRLStep, captions: Captions) -> Result:
    kept: list[Tensor] = []
    compute = other.trainer._get_per_token_logps_and_entropies

    def watched(*arguments, **options):
        results = compute(*arguments, **options)
        if torch.is_grad_enabled():
            kept.append(results[0].detach())
        return results

    other.trainer._get_per_token_logps_and_entropies = watched
    other.give(captions)
    loss = other.gradients()
    other.give(None)
    other.trainer._get_per_token_logps_and_entropies = compute
    gradients = {name: parameter.grad.clone() for name, parameter in other.adapters().items()}
    other.model.zero_grad()
    return Result(torch.cat(kept), loss, gradients)
