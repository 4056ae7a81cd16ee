"""Prompts become complete captions by a text-only chat turn; thoughts are cut before anybody draws them."""

import pytest
import torch

from uae_lightning.algorithms.token_logprobs import gather_logprobs
from uae_lightning.interfaces import Encoder
from uae_lightning.interfaces.encoder import after_thoughts
from uae_lightning.types import Captions, LoRA

PROMPTS = ["a picture of a cat at the center", "a picture of two cats at the center and the top left", "bus"]


def test_captions_are_those_of_transformers_generate(make_encoder):
    # red if positions count padding, `mask` has a column too few, or rows that leave take the masks of others with them
    encoder = make_encoder()
    batch = encoder.rewrite(PROMPTS, samples=6, temperature=1.5, max_new_tokens=30, seed=3)
    assert len(set(batch.lengths.tolist())) > 4  # some have left the batch before others
    asked = encoder.ask(PROMPTS)
    with torch.no_grad():
        for row, tokens in enumerate(batch.tokens):
            prompt, kept = asked.tokens[row // 6][asked.mask[row // 6]], batch.mask[row]
            whole = torch.cat([prompt, tokens[kept]])[None]
            logits = encoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1] / 1.5
            logits[:, encoder.never_sampled] = -torch.inf
            wanted = gather_logprobs(logits, tokens[kept])
            torch.testing.assert_close(batch.logp[row][kept], wanted, atol=1e-4, rtol=1e-4)


def test_greedy_captions_do_not_depend_on_the_prompts_beside(make_encoder):
    # red if padding of a shorter prompt is attended to
    encoder, options = make_encoder(), {"samples": 1, "temperature": 0.0, "max_new_tokens": 20, "seed": 0}
    together = encoder.rewrite(PROMPTS, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.rewrite([prompt], **options)
        assert together.texts[row] == alone.texts[0]
        assert together.tokens[row][together.mask[row]].equal(alone.tokens[0][alone.mask[0]])


@pytest.mark.parametrize("light", [False, True])
def test_a_prompt_that_is_read_once_changes_neither_values_nor_gradients(make_encoder, light):
    # red if the last state is that of padding, or positions go on from the longest prompt
    texts = ["red cat .", "the background is sand . there is one object .", "a bus", "sand"]
    captions = make_encoder().tokenize(texts, ended=True)
    results = []
    for path in ("whole", "shared"):
        torch.manual_seed(0)
        encoder = make_encoder(LoRA(rank=4), checkpoint_activations=light)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        asked = encoder.ask(PROMPTS[:2])
        if path == "shared":
            logp, _ = encoder.token_logprobs(asked, captions, temperature=0.8)
        else:
            logp = torch.stack([alone(encoder, asked, captions, row) for row in range(4)])
        (logp * captions.mask).sum().backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
        results.append((logp.detach()[captions.mask], gradients))
    (whole, of_whole), (shared, of_shared) = results
    torch.testing.assert_close(shared, whole, atol=1e-4, rtol=1e-4)
    for name, gradient in of_whole.items():
        assert (of_shared[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def alone(encoder, asked, captions: Captions, row: int) -> torch.Tensor:
    """[T] log-probabilities of one caption behind its prompt, without padding before it."""
    prompt, tokens = asked.tokens[row // 2][asked.mask[row // 2]], captions.tokens[row]
    logits = encoder.model(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    never = torch.tensor(encoder.never_sampled)
    return gather_logprobs(logits.index_fill(-1, never, torch.finfo(logits.dtype).min), tokens, temperature=0.8)


def test_the_turn_holds_the_instruction_and_the_prompt(parts_folder, make_encoder):
    # red without the instruction, or with the system line of the "generate" template
    kind = type(make_encoder())
    encoder = kind(
        str(parts_folder / "encoder"), caption_system="scene", generate_system="sand", rewrite_prompt="shows"
    )
    words = encoder.tokenizer.batch_decode(encoder.ask(["red cat"]).tokens)[0].split()
    turns = [["system", "scene", "<|im_end|>"], ["user", "shows", "red", "cat", "<|im_end|>"], ["assistant"]]
    assert words == [word for turn in turns for word in ("<|im_start|>", *turn)]


def test_control_tokens_of_a_prompt_are_text(make_encoder):
    # red if texts are put into the template before it is read
    encoder = make_encoder()
    plain, odd = encoder.ask(["red cat"]).tokens, encoder.ask(["red <|im_end|> cat"]).tokens
    assert odd.shape[1] == plain.shape[1] + 1 and encoder.control_texts == 1
    assert (odd == encoder.tokenizer.eos_token_id).sum() == (plain == encoder.tokenizer.eos_token_id).sum()


def test_texts_end_where_they_are_asked_to(make_encoder):
    # red if the end comes behind the padding, or without being asked for
    encoder = make_encoder()
    open_, ended = encoder.tokenize(["red cat", "bus"]), encoder.tokenize(["red cat", "bus"], ended=True)
    end = encoder.tokenizer.eos_token_id
    assert end in encoder.ends and not (open_.tokens[open_.mask] == end).any()
    assert ended.tokens[0].tolist() == [*open_.tokens[0].tolist(), end]
    assert ended.tokens[1][ended.mask[1]].tolist() == [open_.tokens[1, 0].item(), end]


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ("a red cat", "a red cat"),
        ("<think> a cat? </think> a red cat", "a red cat"),
        ("the template has opened them </think> a red cat", "a red cat"),
        ("<think> one </think> no <think> two </think> a red cat", "a red cat"),
        ("<think> thoughts that the limit has cut", ""),
        ("<think> one </think> a cat <think> another", ""),
    ],
)
def test_thoughts_are_cut(said, drawn):
    # red if `rpartition` becomes `partition`, or open thoughts are taken for an answer
    assert after_thoughts(said) == drawn


class Says(Encoder):
    """Says two things of each prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def ask(self, texts):
        return texts

    def generate(self, images, *, samples, **options):
        said = ["<think> </think> {} , red", "<think> {}"][:samples]
        texts = [one.format(text) for text in images for one in said]
        tokens = torch.ones(len(texts), 2, dtype=torch.long)
        return Captions(texts, tokens, tokens > 0, torch.zeros(tokens.shape), torch.zeros(len(texts)) > 0)

    def save(self, folder): ...

    def token_logits(self, images, captions): ...

    def tokenize(self, texts, *, ended=False): ...

    def embed(self, texts): ...


def test_a_prompt_whose_rewriting_is_all_thoughts_is_drawn_itself():
    # red if prompts are not repeated for their samples, or tokens and texts are both cut
    captions = Says().rewrite(["cat", "bus"], samples=2, temperature=1.0, max_new_tokens=2, seed=0)
    assert captions.texts == ["cat , red", "cat", "bus , red", "bus"] and captions.tokens.shape == (4, 2)


def test_an_encoder_without_such_a_turn_says_so():
    # red if `ask` is abstract, or gives the texts back
    with pytest.raises(ValueError, match="Says does not rewrite prompts: leave --rewrite"):
        Encoder.ask(Says(), ["cat"])
