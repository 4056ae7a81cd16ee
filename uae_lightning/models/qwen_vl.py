"""Qwen2.5-VL as the encoder: image -> caption by generation, caption -> hidden states by reading it alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import is_flash_attn_2_available

from uae_lightning.algorithms.token_logprobs import logprobs_and_entropy
from uae_lightning.models import prompts
from uae_lightning.models.activations import checkpoint_blocks
from uae_lightning.models.adapters import MergedState, add_lora, lora_layers, to_dtype
from uae_lightning.models.control_tokens import ForeignText
from uae_lightning.models.handed_on import AdaptedPart, save_peft, source_of
from uae_lightning.models.loading import load, reading
from uae_lightning.models.lora_product import merged_while
from uae_lightning.models.prompt_cache import FixedPrefix, Prefix, PromptReader
from uae_lightning.models.prompts import PLACE, Asked, turns
from uae_lightning.models.quantization import Quantization
from uae_lightning.models.saving import save_transformers
from uae_lightning.models.seeing import SeeingEncoder, Seen
from uae_lightning.models.token_sampling import end_tokens, is_end, sample_tokens, up_to_first
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Captions, CaptionTurn, Learning, LoRA

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # that are wanted of a model on the hub
LOGITS = 2**25  # that are held at a time: 128 MB in float32, where 512 tokens of Qwen's vocabulary would take 311
TEXT_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@checked
class QwenVLEncoder(AdaptedPart, SeeingEncoder):
    """`Qwen2_5_VLForConditionalGeneration` with its tokenizer and chat template; `qwen3_vl.py` is the next generation.

    Args:
        path: folder or hub id in the layout of transformers.
        dtype: of the frozen weights; adapters are float32.
        quantization: of the linear layers in the blocks, "8bit" or "4bit" (NF4) by bitsandbytes.
        attention: "sdpa", "eager", or "flash_attention_2", which needs the flash-attn package.
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
        caption_system, caption_prompt: what the encoder is asked for a caption; an empty system line is left out.
        rewrite_prompt: what it is asked, after the same system line, to make a complete caption of the prompt that
            follows. An answer may open with thoughts: all up to a `</think>` is cut off.
        generate_system: system line of the "generate" template in which the decoder's captions are read.
        max_pixels: larger pictures are scaled down to this area (released UAE: 65,536).

    Raises:
        FileNotFoundError: `path` names no model that can be had.
        ValueError: flash-attn is asked for and not installed, or `path` holds another model, or not all of its weights.
    """

    kind: ClassVar[type[PreTrainedModel]] = Qwen2_5_VLForConditionalGeneration
    title: ClassVar[str] = "Qwen2.5-VL"
    preprocessor_kind: ClassVar[type] = Qwen2VLImageProcessorPil
    reading_role: ClassVar[str] = "generate"  # of the turn in which a caption is read alone
    squares_pictures: ClassVar[bool] = False  # every picture is one square of a fixed size
    chat_options: ClassVar[dict[str, Any]] = {}  # of the chat template
    text_linears: ClassVar[str] = TEXT_LINEARS  # that a LoRA is on, as a regular expression on full names
    placeholders: ClassVar[tuple[str, ...]] = (  # of config.json: tokens that a policy must not sample
        "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        quantization: Quantization = "none",
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        checkpoint_activations: bool = False,
        caption_system: str = prompts.CAPTION_SYSTEM,
        caption_prompt: str = prompts.CAPTION_PROMPT,
        generate_system: str = prompts.GENERATE_SYSTEM,
        rewrite_prompt: str = prompts.REWRITE_PROMPT,
        max_pixels: Count = 65_536,
    ) -> None:
        super().__init__()
        if attention == "flash_attention_2" and not weightless() and not is_flash_attn_2_available():
            raise ValueError(
                "attention: flash_attention_2 needs the flash-attn package and a GPU: install the extra "
                "(`pip install --no-build-isolation 'uae-lightning[flash]'`), or set attention: sdpa"
            )
        self.source, self.dtype, self.quantization = source_of(path, FILES), to_dtype(dtype), quantization
        folder = self.source.folder
        self.model = load(
            self.kind, folder, self.dtype,
            attn_implementation="sdpa" if weightless() else attention,
        )  # fmt: skip
        self.model.requires_grad_(False)
        self.source.complete(self.model, self.blocks(), quantization)
        if checkpoint_activations:
            checkpoint_blocks(self.blocks())
        config = self.model.config
        self.hidden_size = config.text_config.hidden_size
        self.max_pixels = max_pixels
        # a policy must not sample placeholders of pictures: in replay the model would look for pictures there
        self.never_sampled = [config.to_dict()[name] for name in self.placeholders]
        self.generate_system, self.caption_system, self.rewrite_prompt = generate_system, caption_system, rewrite_prompt
        if not weightless():
            self._load_text(folder, caption_prompt)

    def _load_text(self, folder: Path, caption_prompt: str) -> None:
        with reading("tokenizer or preprocessor", folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.preprocessor = self.preprocessor_kind.from_pretrained(folder)
        self.foreign_text = ForeignText(self.tokenizer)
        with reading("chat template", folder):
            content = [{"type": "image"}, {"type": "text", "text": caption_prompt}]
            self.caption_turns = turns(self.caption_system, "user", content)
            self.prompt = self.chat(self.caption_turns)
            around = self.generate_prompt(PLACE).split(PLACE)
        self._check_text(folder, around)
        self.pad = self.tokenizer.pad_token_id
        self.ends = end_tokens(self.model.generation_config, self.tokenizer)
        # Qwen's own has a repetition penalty: its captions would come from another policy than the one that is trained
        self.saved_generation_config, self.model.generation_config = self.model.generation_config, GenerationConfig()

    def _check_text(self, folder: Path, around: list[str]) -> None:
        """Raises ValueError where text files and weights are not of one model."""
        picture = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        if self.prompt.count(picture or PLACE) != 1 or len(around) != 2:
            raise ValueError(
                f"the chat template in {folder} has no place for a picture ({picture}), or for the text to draw: copy "
                "chat_template.jinja and tokenizer.json again"
            )
        self._check_preprocessor(folder)

    def blocks(self) -> list[nn.Module]:
        language = self.model.model.language_model
        return [*self.vision_blocks(), *(language.layers if language is not None else [])]

    def drop_language(self) -> None:
        """What remains can `see`, and nothing else."""
        self.model.model.language_model = self.model.lm_head = None

    # ----------------------------------------------------------------- what another family has in another way

    def places(self, positions: Tensor) -> Tensor:
        """Positions [N, T] of words as the text decoder takes them: in time, height and width alike."""
        return positions.expand(3, -1, -1)

    def prompt_places(self, input_ids: Tensor, kinds: Tensor, grid: Tensor) -> Tensor:
        """Positions [3, 1, L] of the caption prompt, in which a picture's have rows and columns."""
        return self.model.model.get_rope_index(
            input_ids, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=torch.ones_like(input_ids)
        )[0]

    def adapt(self, learning: Learning) -> None:
        """A LoRA on the linear layers of the text decoder where its `targets` name nothing else; the vision tower stays
        frozen (paper: unfreezing it collapsed)."""
        if learning == "all":
            raise ValueError(
                f"{type(self).__name__} learns by a LoRA alone: set model.init_args.learn.encoder to "
                "{rank: 32, alpha: 64}"
            )
        self.model.requires_grad_(False)
        if isinstance(learning, LoRA):
            add_lora(self.model, learning, self.text_linears, self.random_state)

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return super().fingerprint(adapters) | {"caption template": self.generate_prompt("CAPTION")}

    # ----------------------------------------------------------------- image, or prompt -> caption

    @torch.no_grad()
    def generate(
        self,
        images: Tensor | Seen | Asked,
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        heard: Callable[[list[str]], None] | None = None,
    ) -> Captions:
        copies = samples if temperature > 0 else 1
        prefix = self.read_prompt(images)  # once per picture, whatever the group's size
        cache = prefix.reader.for_generation(copies)
        states, position, mask = prefix.repeat(copies)

        def logits_after(chosen: Tensor | None, rows: Tensor | None, index: int) -> Tensor:
            """[rows, V] once `chosen` [rows] were read as token `index`; `rows` are those of the last call to keep."""
            nonlocal position, mask
            if chosen is None:
                return self.head(states)
            if rows is not None:
                cache.batch_select_indices(rows)
                position, mask = position[rows], None if mask is None else mask[rows]
            output = self.model.model.language_model(
                input_ids=chosen[:, None],
                attention_mask=None if mask is None else F.pad(mask, (0, index + 1), value=True).long(),
                position_ids=self.places((position + index)[:, None]),
                past_key_values=cache,
                use_cache=True,
            )
            return self.head(output.last_hidden_state[:, -1])

        with torch.random.fork_rng(devices=[states.device] if states.is_cuda else []), merged_while(self.model):
            torch.manual_seed(seed)
            tokens, logp = sample_tokens(
                logits_after, count=len(images) * copies, temperature=temperature, length=max_new_tokens,
                ends=self.ends, pad=self.pad, heard=None if heard is None else lambda said: heard(self.spoken(said)),
            )  # fmt: skip
        # all greedy captions of a picture are the same
        tokens, logp = (values.repeat_interleave(samples // copies, 0) for values in (tokens, logp))
        end = is_end(tokens, self.ends)
        return Captions(self.spoken(tokens), tokens, up_to_first(end), logp, cut=~end.any(1))

    def dictate(
        self,
        images: Tensor | Seen | Asked,
        heard: Callable[[list[str]], None],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> Captions:
        return self.generate(
            images, samples=1, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, heard=heard
        )

    def spoken(self, tokens: Tensor) -> list[str]:
        """The texts of sampled tokens [N, T], each up to its end."""
        kept = up_to_first(is_end(tokens, self.ends))
        texts = self.tokenizer.batch_decode(tokens.where(kept, self.pad), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def read_prompt(self, images: Tensor | Seen | Asked) -> Prefix:
        """The caption prompt with each picture, or what asks for a caption of each prompt, read once."""
        if isinstance(images, Asked):
            return self._read_asked(images)
        seen, model = self.see(images) if isinstance(images, Tensor) else images, self.model.model
        input_ids, kinds, grid = self.prompt_of(seen.grid, seen.features.device)
        embeddings = model.get_input_embeddings()(input_ids).expand(len(seen), -1, -1)
        embeddings = embeddings.masked_scatter(kinds.bool().unsqueeze(-1), seen.features.to(embeddings))
        positions = self.prompt_places(input_ids, kinds, grid)
        reader = PromptReader()
        states = model.language_model(
            inputs_embeds=embeddings, position_ids=positions.expand(*positions.shape[:-2], len(seen), -1),
            past_key_values=reader,
            **self.deep_inputs(seen, kinds),
        ).last_hidden_state  # fmt: skip
        return Prefix(reader, states[:, -1], (positions.max() + 1).expand(len(seen)), None)

    def _read_asked(self, asked: Asked) -> Prefix:
        reader, lengths = PromptReader(), asked.mask.sum(1)
        states = self.model.model.language_model(
            input_ids=asked.tokens,
            attention_mask=asked.mask.long(),
            position_ids=self.places((asked.mask.cumsum(1) - 1).clamp(min=0)),
            past_key_values=reader,
        ).last_hidden_state
        return Prefix(reader, states[:, -1], lengths, asked.mask)

    def ask(self, texts: list[str]) -> Asked:
        self.control_texts += self.foreign_text.with_control(texts)
        before, after = self.chat(turns(self.caption_system, "user", f"{self.rewrite_prompt}\n{PLACE}")).split(PLACE)
        return Asked(*self.padded(self.foreign_text.encode(texts, before, after), "left"))

    def caption_states(self, images: Tensor | Seen | Asked, captions: Captions) -> Tensor:
        """[N, T, D], the states that predict each token of the captions; the prompt is read once per picture."""
        copies, rest = divmod(len(captions.tokens), len(images))
        if rest:
            raise ValueError(f"{len(captions.tokens)} captions cannot be shared out among {len(images)} pictures")
        prefix = self.read_prompt(images)
        last, position, mask = prefix.repeat(copies)
        length = captions.tokens.shape[1]
        # one pass at least, also for captions of a single token: sharded models count on as many passes on every rank
        tokens = captions.tokens[:, : max(length - 1, 1)]
        output = self.model.model.language_model(
            input_ids=tokens,  # padding comes last, where nothing attends to it
            attention_mask=None if mask is None else F.pad(mask, (0, tokens.shape[1]), value=True).long(),
            position_ids=self.places(position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)),
            past_key_values=FixedPrefix(prefix.reader, copies),
        )
        return torch.cat([last.unsqueeze(1), output.last_hidden_state], 1)[:, :length]

    def head(self, states: Tensor) -> Tensor:
        """[.., D] -> logits [.., V], what must not be sampled at the least number there is."""
        logits = self.model.lm_head(states)
        never = torch.tensor(self.never_sampled, device=logits.device)
        return logits.index_fill(-1, never, torch.finfo(logits.dtype).min)

    def token_logits(self, images: Tensor | Seen | Asked, captions: Captions) -> Tensor:
        return self.head(self.caption_states(images, captions))

    def token_logprobs(
        self, images: Tensor | Seen | Asked, captions: Captions, *, temperature: float
    ) -> tuple[Tensor, Tensor]:
        states, tokens = self.caption_states(images, captions).flatten(0, 1), captions.tokens.flatten()
        rows = max(1, LOGITS // self.model.config.text_config.vocab_size)
        score = functools.partial(self._score, temperature=temperature)
        if len(tokens) > rows and torch.is_grad_enabled():  # the logits of a chunk are computed again when needed
            score = functools.partial(checkpoint, score, use_reentrant=False)
        parts = [score(*part) for part in zip(states.split(rows), tokens.split(rows), strict=True)]
        logp, entropies = (torch.cat(values).view_as(captions.tokens) for values in zip(*parts, strict=True))
        return logp, entropies

    def _score(self, states: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [n] at states [n, D]."""
        return logprobs_and_entropy(self.head(states), tokens, temperature=temperature)

    def tokenize(self, texts: list[str], *, ended: bool = False) -> Captions:
        end = [self.tokenizer.eos_token_id] if ended else []
        return Captions(texts, *self.padded([[*ids, *end] for ids in self.foreign_text.encode(texts)]))

    def padded(self, rows: list[list[int]], side: str = "right") -> tuple[Tensor, Tensor]:
        """Token ids [N, T], filled up on that side, and where they are [N, T] bool."""
        parts = [torch.tensor(ids, dtype=torch.long, device=self.model.device) for ids in rows]
        ids = pad_sequence(parts, batch_first=True, padding_value=self.pad, padding_side=side)
        there = [torch.ones_like(part).bool() for part in parts]
        return ids, pad_sequence(there, batch_first=True, padding_side=side)

    # ----------------------------------------------------------------- captions that are written elsewhere

    def turn(self, images: Tensor) -> CaptionTurn:
        tokens = self.prompt_of(self.grid_of(images), torch.device("cpu"))[0][0].tolist()
        return CaptionTurn(self.caption_turns, tokens, self.ends, self.never_sampled, self.processor_options())

    def captions_of(self, tokens: list[list[int]], logp: list[list[float]]) -> Captions:
        ids, mask = self.padded(tokens)
        values = pad_sequence([torch.tensor(row, device=ids.device) for row in logp], batch_first=True)
        cut = torch.tensor([row[-1] not in self.ends for row in tokens], device=ids.device)
        return Captions(self.spoken(ids), ids, mask, values, cut)

    def save_adapter(self, folder: Path) -> None:
        save_peft(folder, self.model, self.source.name)

    # ----------------------------------------------------------------- caption -> states

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        self.control_texts += self.foreign_text.with_control(texts)
        before, after = self.generate_prompt(PLACE).split(PLACE)
        input_ids, mask = self.padded(self.foreign_text.encode(texts, before, after))
        positions = self.places(torch.arange(input_ids.shape[1], device=input_ids.device).expand(*input_ids.shape))
        states = self.model.model.language_model(
            input_ids=input_ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
        return states, mask

    def spans(self, text: str) -> list[tuple[int, int]]:
        return self.foreign_text.spans(text, *self.generate_prompt(PLACE).split(PLACE))

    def generate_prompt(self, text: str) -> str:
        return self.chat(turns(self.generate_system, self.reading_role, text))

    def chat(self, messages: list[dict[str, Any]]) -> str:
        """Turns up to where the answer begins."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.chat_options
        )

    # ----------------------------------------------------------------- adapters and files

    @property
    def learner(self) -> nn.Module:
        return self.model

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = MergedState(self.model, dtype)
        with torch.device("meta"):
            model = self.kind(self.model.config)
        model.load_state_dict(state.shapes(), assign=True)
        model.tie_weights()
        model.generation_config = self.saved_generation_config
        sums = save_transformers(model, state, folder)
        self.tokenizer.backend_tokenizer.no_padding()  # of the last texts it read; they would stand in tokenizer.json
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)
        self.preprocessor.save_pretrained(folder)
        if lora_layers(self.model):
            self.save_lora(folder)
        seal(folder, sums)

    def save_lora(self, folder: Path) -> None:
        state = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(self.model).items()}
        save_file(state, folder / "adapter_model.safetensors")
