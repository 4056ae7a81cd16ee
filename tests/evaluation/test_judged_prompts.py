"""Benchmarks judged by a vision-language model: scores by hand, formats, and a fake judge."""

from __future__ import annotations

import json
import re

import benchmark_rows as rows
import numpy as np
import pytest
import torch
from fake_endpoint import Fake, picture_in, says, text_in, tokens

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation.dpg_bench import DPGBench, counted
from uae_lightning.evaluation.drawing import drawn
from uae_lightning.evaluation.geneval2 import GenEval2
from uae_lightning.evaluation.judged_prompts import JudgedPrompts
from uae_lightning.evaluation.suite import Evaluation, Subject, described, evaluate
from uae_lightning.evaluation.table import table
from uae_lightning.evaluation.unigenbench import UniGenBench
from uae_lightning.evaluation.wise import WISE, WISEVerified
from uae_lightning.remote import endpoint
from uae_lightning.report.evaluation import evaluation_section
from uae_lightning.rewards.openai_chat import OpenAIChat
from uae_lightning.scenes.data import ScenesData
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError

NOTHING = torch.zeros(1, 3, 4, 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


@pytest.fixture
def model(make_encoder, make_projector, make_decoder):
    return AutoEncoder(make_encoder(), make_projector(), make_decoder(), sampling=Sampling(2)).eval()


def judged(benchmark, answer, count=None):
    """Lists of one gray picture for each prompt, by a fake judge."""
    prompts = benchmark.prompts[:count]
    with Fake(answer) as fake:
        suite = JudgedPrompts(benchmark, OpenAIChat(fake.url, "m", concurrency=2))
        return suite, suite.judged(prompts, NOTHING.expand(len(prompts), -1, -1, -1)), fake.requests


# ------------------------------------------------------------------------------------------------ DPG-Bench


def test_a_question_counts_where_its_parents_do(tmp_path):
    # red if a child of a missing parent counts, one parent of two is enough, or grandchildren are forgotten
    (prompt, _) = DPGBench(str(rows.write_dpg(tmp_path / "dpg.csv"))).prompts
    assert counted(prompt, [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert counted(prompt, [0, 1, 1, 1]) == [0, 0, 1, 0]
    assert counted(prompt, [1, 0, 0, 1]) == [1, 0, 0, 0]
    chain = [("c", "t", number, needs, "entity (x)", "?") for number, needs in ((1, "2"), (2, "3"), (3, "0"))]
    (prompt,) = DPGBench(str(rows.write_dpg(tmp_path / "chain.csv", chain))).prompts
    assert counted(prompt, [1, 1, 0]) == [0, 0, 0] and counted(prompt, [1, 0, 1]) == [0, 0, 1]


def test_dpg_figures(tmp_path):
    # red if categories count parents, as the overall figure does, or the first row of the file is lost
    said = {"Is there a cup?": "No.", "Is the cup red?": "Yes", "Is there a table?": "yes", "Does it rain?": "Yes!"}
    benchmark = DPGBench(str(rows.write_dpg(tmp_path / "dpg.csv")))
    answer = lambda request: says(said.get(text_in(request).removesuffix(" Answer yes or no."), "no"))  # noqa: E731
    _, items, requests = judged(benchmark, answer)
    assert items == {
        "overall": [0.25, 1.0], "entity": [0.0, 1.0], "attribute": [1.0], "relation": [0.0], "global": [1.0],
        "unread": [0.0] * 5,
    }  # fmt: skip
    assert len(requests) == 5 and benchmark.drawings_each == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "t", 9, "7", "entity (x)", "?"), "item a: two rows of one proposition_id, or a dependency that is none"),
        (("a", "t", 1, "0", "entity (x)", "?"), "item a: two rows of one proposition_id"),
        (("c", "", 1, "0", "entity (x)", "?"), "item c has no text"),
        (("a", "t", 9, "9", "entity (x)", "?"), "in a circle"),
        (("a", "t", "x", "0", "entity (x)", "?"), "line 7 is not in its format .invalid literal"),
        (("a", "t", 9, "0", "entity (x)", ""), "line 7 is not in its format .'question_natural_language' is no text"),
    ],
)
def test_a_malformed_table(tmp_path, row, message):
    # red without the check of that mistake
    with pytest.raises(UsageError, match=f"DPG-Bench: .*{message}"):
        _ = DPGBench(str(rows.write_dpg(tmp_path / "dpg.csv", [*rows.DPG, row]))).prompts


# ------------------------------------------------------------------------------------------------ GenEval 2


def by_question(request):
    text = text_in(request)
    if "How many dogs" in text:
        return tokens(**{"four": 0.5, " 4": 0.25, "three": 0.25})
    if "red" in text:
        return tokens(Yes=0.5, yes=0.25, No=0.2)
    return tokens(**{"Yes": 0.1, "two": 0.4}) if "birds" in text else tokens(Yes=1.0)


def test_soft_tifa(tmp_path):
    # red if digits, capitals or blanks are other answers, means are swapped, or a skill takes another's marks
    benchmark = GenEval2(str(rows.write_geneval2(tmp_path / "g.jsonl")))
    _, items, requests = judged(benchmark, by_question)
    expected = {
        "overall": [(0.75 * 0.75 * 1.0) ** (1 / 3), (0.4 * 0.1) ** 0.5],
        "soft_tifa_am": [(0.75 + 0.75 + 1.0) / 3, 0.25],
        "atoms_5": [(0.75 * 0.75) ** (1 / 3)],
        "atoms_3": [0.2],
        "count": [0.75, 0.4],
        "attribute": [0.75, 0.1],
        "object": [1.0],
    }
    assert items.pop("unread") == [0.0] * 5 and items == {name: pytest.approx(one) for name, one in expected.items()}
    asked = {text_in(request) for request in requests}
    assert "How many dogs are in the image? Answer in one word." in asked and requests[0]["max_tokens"] == 1
    _, items, _ = judged(benchmark, tokens(Yes=0.0 + 1e-9, maybe=0.9))
    assert items["overall"][0] == pytest.approx(0.0, abs=1e-9)


# ------------------------------------------------------------------------------------------------ WISE


def test_wiscore(tmp_path):
    # red with other weights, without the half, or with the categories of other prompts
    benchmark = WISE(str(rows.write_wise(tmp_path / "w.json")))
    marks = {"Newton": "2\nRealism: 1\nAesthetic Quality: 0", "bees": "1\nRealism: 2\nAesthetic Quality: 2"}

    def answer(request):
        found = [one for key, one in marks.items() if key in text_in(request)]
        return says(f"Consistency: {found[0]}" if found else "I like it")

    suite, items, requests = judged(benchmark, answer)
    scores = [(0.7 * 2 + 0.2 * 1 + 0.1 * 0) / 2, (0.7 * 1 + 0.2 * 2 + 0.1 * 2) / 2, 0.0]
    assert items["overall"] == pytest.approx(scores) and items["physics"] == pytest.approx(scores[:1])
    assert items["biology"] == pytest.approx(scores[1:]) and items["realism"] == [0.5, 1.0, 0.0]
    assert items["unread"] == [0.0] * 6 + [1.0] * 3 and suite.better("unread") == -1
    (newton,) = [text_in(request) for request in requests if "Newton" in text_in(request)]
    assert "This is an apple" in newton and "{" not in newton and len(requests) == 3


def test_wise_verified_is_right_or_wrong(tmp_path):
    # red if it has the weights of the first WISE
    benchmark = WISEVerified(str(rows.write_wise(tmp_path / "w.json")))
    _, items, _ = judged(benchmark, lambda request: says(f"Score: {int('bees' in text_in(request))}"))
    assert items == {"overall": [0, 1, 0], "physics": [0], "biology": [1, 0], "unread": [0.0] * 3}


def test_wise_in_its_own_words(tmp_path):
    # red if the code is run, the system message is lost, or prompt and explanation are swapped
    path, code = rows.write_wise(tmp_path / "w.json"), rows.write_wise_code(tmp_path / "gpt_eval.py")
    _, _, requests = judged(WISE([str(path), str(path)], str(code)), says("Consistency: 2"), 1)
    system, user = requests[0]["messages"]
    assert system["content"] == "You judge." and user["content"][-1]["type"] == "image_url"
    assert text_in(requests[0]) == "P: The fruit that fell on Newton\nE: This is an apple\nthree lines"
    code.write_text("def other(): pass")
    with pytest.raises(
        UsageError, match="WISE: .*gpt_eval.py has no function build_evaluation_messages.*PKU-YuanGroup"
    ):
        _ = WISE(str(path), str(code)).prompts
    code.write_text("def build_evaluation_messages(row): return {'text': 'one'}")
    with pytest.raises(UsageError, match="is none with a system and a user message"):
        _ = WISE(str(path), str(code)).prompts


# ------------------------------------------------------------------------------------------------ UniGenBench


def in_lists(request):
    text = text_in(request)
    return says("[1, 0]" if "owls" in text else "[1, 1, 0]" if "fish" in text else "[0, 1]")


def test_unigenbench_is_the_mean_of_its_dimensions(tmp_path):
    # red if the overall figure is that of all points, or dimensions and their parts are mixed up
    benchmark = UniGenBench(str(rows.write_unigenbench(tmp_path / "u.csv")))
    suite, items, requests = judged(benchmark, in_lists)
    assert items == {
        "style": [1, 1], "attribute": [0, 1, 0], "attribute_quantity": [0], "attribute_material": [1, 0],
        "action": [0, 1], "action_animal": [0, 1], "unread": [0.0] * 7,
    }  # fmt: skip
    figures = suite.figures(items)
    assert figures["overall"]["mean"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert figures["overall"]["mean"] != pytest.approx(4 / 7) and "attribute_quantity" not in figures
    assert "2. Attribute - Quantity: a pair of owls" in "".join(map(text_in, requests))
    assert suite.groups(figures)[0].rows[0].figure == "overall"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_unigenbench_in_its_own_words(tmp_path, language):
    # red if the code is run, or meanings and descriptions are swapped
    path = rows.write_unigenbench(tmp_path / "u.csv", language)
    code = rows.write_unigenbench_code(tmp_path / "eval_common.py")
    _, items, requests = judged(UniGenBench(str(path), str(code)), in_lists, 1)
    text = text_in(requests[0])
    assert text.startswith("Q A pair of owls in ink | ['Style', 'Attribute - Quantity'] | ")
    assert "\nStyle: how it is drawn\nAttribute - Quantity: how many\n」 | " in text
    assert text.endswith("\nStyle: ink\nAttribute - Quantity: a pair of owls\n」")
    assert requests[0]["messages"][0]["content"][-1]["type"] == "image_url" and items["style"] == [1]
    code.write_text("EXPLANATION_DICT_EN = {}")
    with pytest.raises(UsageError, match="UniGenBench: .*has no SYSTEM_PROMPT_EN_TEMPLATE: take eval/src"):
        _ = UniGenBench(str(path), str(code)).prompts


def test_malformed_json_in_a_table(tmp_path):
    # red if it is a traceback, or passed over
    path = rows.write_unigenbench(tmp_path / "u.csv")
    path.write_text(path.read_text().replace('""Style"", ', '""Style"" ', 1))
    with pytest.raises(UsageError, match="UniGenBench: .*u.csv, line 2 is not in its format .Expecting ',' delimiter"):
        _ = UniGenBench(str(path)).prompts


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize(
    ("benchmark", "where"),
    [
        (DPGBench, "dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA"),
        (GenEval2, "geneval2_data.jsonl of github.com/facebookresearch/GenEval2"),
        (WISE, "WISE_legacy/data of github.com/PKU-YuanGroup/WISE"),
        (WISEVerified, "data_verified/merge.json of github.com/PKU-YuanGroup/WISE"),
        (UniGenBench, "data/test_prompts_en.csv of github.com/CodeGoat24/UniGenBench"),
    ],
)
def test_files_that_are_not_there_or_of_another_benchmark(tmp_path, benchmark, where):
    # red if the message does not say where the file is had, or a file of another format is taken
    with pytest.raises(UsageError, match=f"no.such does not exist: put {re.escape(where)}.* there"):
        _ = benchmark(str(tmp_path / "no.such")).prompts
    for name, content in (("a", '{"other": 1}\n'), ("b", "x,y\n1,2\n"), ("c", ""), ("d", "[1, 2]"), ("e", "\0\n{")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=benchmark.title.split(",")[0]):
            _ = benchmark(str(tmp_path / name)).prompts
    (tmp_path / "f").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        _ = benchmark(str(tmp_path / "f")).prompts


def test_each_picture_is_judged_by_the_questions_of_its_prompt(model, tmp_path):
    # red if pictures and prompts are shifted, drawn of other noise than GenEval's, or the suite's sampling is not taken
    benchmark = DPGBench(str(rows.write_dpg(tmp_path / "dpg.csv")))
    seen: dict[str, list[float]] = {}

    def remember(request):
        seen.setdefault(text_in(request), []).append(float(np.array(picture_in(request).convert("L")).mean()))
        return says("yes")

    with Fake(remember) as fake:
        suite = JudgedPrompts(benchmark, OpenAIChat(fake.url, "m", concurrency=1), sampling=Sampling(3, 2.0))
        items = suite.measure(Subject(model, None, 0, 5, batch_size=2, seed=3))
    assert items["overall"] == [1.0] * 5  # prompts a, b, a, b, a: no more drawings than the evaluation has
    assert len(seen["Does it rain? Answer yes or no."]) == 2 and len(seen["Is there a cup? Answer yes or no."]) == 3
    model.sampling = Sampling(3, 2.0)
    pictures = torch.cat(list(drawn(model, [p.text for p in benchmark.prompts * 2][:4], 3, 2)))
    gray = (pictures.mul(255).round() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).mean((1, 2))
    torch.testing.assert_close(
        torch.tensor(seen["Does it rain? Answer yes or no."]), gray[1::2].cpu(), atol=1.0, rtol=0
    )


def test_no_more_pictures_than_the_protocol_has(model, tmp_path):
    # red if prompts come again without end, as GenEval's do
    benchmark = WISEVerified(str(rows.write_wise(tmp_path / "w.json")))
    with Fake(says("Score: 1")) as fake:
        suite = JudgedPrompts(benchmark, OpenAIChat(fake.url, "m"))
        assert suite.measure(Subject(model, None, 0, 50, batch_size=2))["overall"] == [1.0] * 3


def test_a_rewritten_prompt_is_judged_as_it_was(model, tmp_path):
    # red if the judge is asked about what was drawn in its place
    benchmark = WISEVerified(str(rows.write_wise(tmp_path / "w.json")))
    with Fake(says("Score: 1")) as fake:
        suite = JudgedPrompts(benchmark, OpenAIChat(fake.url, "m"), rewriting=Captioning(0.0, 10))
        suite.measure(Subject(model, None, 0, 3, batch_size=3))
        assert {text_in(one).split("The prompt: ")[1].split("\n")[0] for one in fake.requests} == {
            prompt.text for prompt in benchmark.prompts
        }


@pytest.mark.parametrize(("bad", "message"), [(3, "100% of 2 questions"), (1, "33% of 3 questions")])
def test_a_judge_that_does_not_answer_as_asked_ends_the_evaluation(model, tmp_path, bad, message):
    # red if what is no answer is a figure, or found out only after all pictures are drawn
    benchmark = WISEVerified(str(rows.write_wise(tmp_path / "w.json")))
    right = ("Newton", "bees", "autumn")[: 3 - bad]
    answer = lambda request: says("Score: 1" if any(one in text_in(request) for one in right) else "Nice.")  # noqa: E731
    with Fake(answer) as fake:
        suite = JudgedPrompts(benchmark, OpenAIChat(fake.url, "m"))
        with pytest.raises(ValueError, match=f"m at http.* did not answer {message} as it was asked"):
            suite.measure(Subject(model, None, 0, 3, batch_size=2))
        assert len(fake.requests) == (2 if bad == 3 else 3)


def test_reports_and_gains(model, tmp_path):
    # red if figures cannot be compared by an evaluation's file, or reports do not show them
    suites = {}
    with Fake(says("[1, 0]")) as fake:
        judge = OpenAIChat(fake.url, "m")
        path = rows.write_unigenbench(tmp_path / "u.csv")
        path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
        suites["unigenbench"] = JudgedPrompts(UniGenBench(str(path)), judge)
        figures, items = evaluate(model, Evaluation(ScenesData(validation_pictures=4), suites, 4, 8, 4))
    record = {"figures": figures, "suites": described(suites, figures, items), "kin_of_reward": []}
    assert record["suites"]["unigenbench"]["statistics"]["overall"] == {
        "lists": ["attribute", "style"], "kind": "tasks", "better": 1,
    }  # fmt: skip
    assert figures["unigenbench"]["overall"]["mean"] == 0.5 and "unread" in table(json.loads(json.dumps(record)))
    page = evaluation_section({**record, "before": figures, "after": figures, "gain": figures})
    assert "UniGenBench" in page and "attribute quantity" in page
