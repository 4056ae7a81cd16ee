"""Answers of servers on disk: a process that was killed, two at once, files that are none of ours, and what is kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_endpoint import Fake, brightness, inputs_of, says, text_in, tokens

from uae_lightning.remote import answers as module
from uae_lightning.remote.answers import FILE, Answers
from uae_lightning.rewards.http_reward import HttpReward
from uae_lightning.rewards.openai_chat import OpenAIChat, Turn
from uae_lightning.rewards.openai_judge import OpenAIJudge
from uae_lightning.usage import UsageError

SPAWN = multiprocessing.get_context("spawn")  # nothing is inherited, as between two commands


def answers_in(folder: Path, size: int = 9) -> Answers:
    return Answers(["a judge"], size, str(folder), lambda answer: isinstance(answer, float))


def test_a_killed_process_has_paid_for_what_was_answered(tmp_path):
    # red if answers are kept when all of them are there (asked would be a, b, c, a, b, c, d)
    script = (
        "import sys; from uae_lightning.rewards.openai_chat import OpenAIChat, Turn\n"
        "chat = OpenAIChat(sys.argv[1], 'm', concurrency=1, cache_folder=sys.argv[2])\n"
        "chat.written([Turn(text) for text in 'abcd'])"
    )
    with Fake(lambda request: says(text_in(request)) | {"after": 60.0 * (text_in(request) == "c")}) as fake:
        process = subprocess.Popen([sys.executable, "-c", script, fake.url, str(tmp_path)])
        while len(fake.requests) < 3 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        fake.answers = [lambda request: says(text_in(request))]
        again = OpenAIChat(fake.url, "m", concurrency=1, cache_folder=str(tmp_path))
        assert again.written([Turn(text) for text in "abcd"]) == [*"abcd"]
        assert "".join(map(text_in, fake.requests)) == "abccd"


def write(folder: str, first: int, count: int, start) -> None:
    kept = answers_in(Path(folder), 0)
    start.wait()
    for number in range(first, first + count):
        kept.keep({kept.key(number): float(number)})


def test_two_processes_at_once(tmp_path):
    # red if a file that another process writes to is not waited for: it is locked
    start = SPAWN.Barrier(2)
    processes = [SPAWN.Process(target=write, args=(str(tmp_path), first, 60, start)) for first in (0, 40)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    kept = answers_in(tmp_path)
    keys = [kept.key(number) for number in range(100)]
    assert kept.known(keys) == {key: float(number) for number, key in enumerate(keys)}


def test_a_locked_file_is_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    # red with a PATIENCE that does not reach sqlite
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    kept = answers_in(tmp_path)
    kept.check()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("begin exclusive")
        began = time.monotonic()
        with pytest.raises(UsageError, match="cache_folder: .*cannot be used .*locked"):
            kept.keep({b"a": 1.0})
        assert time.monotonic() - began < 3


def test_rewards_ask_once_for_all_processes(tmp_path):
    # red if values come back rounded or in another order, or if URL or parts are left out of HttpReward's key
    folder = str(tmp_path)

    def answer(request: dict) -> dict:
        said = brightness(request)
        said["body"]["parts"]["words"] = [2.0] * len(request["images"])
        return said

    with Fake(answer) as fake, Fake(answer) as other:
        first = HttpReward(fake.url, batch_size=2, parts=["letters"], cache_folder=folder)(inputs_of(3))
        again = HttpReward(fake.url, batch_size=2, parts=["letters"], cache_folder=folder)(inputs_of(4))
        assert torch.equal(again.total[:3], first.total) and len(fake.requests) == 3
        assert again.parts["letters"].tolist() == [6.0] * 4
        assert (
            HttpReward(fake.url, parts=["words"], cache_folder=folder)(inputs_of(3)).parts["words"].tolist()
            == [2.0] * 3
        )
        HttpReward(other.url, parts=["letters"], cache_folder=folder)(inputs_of(3))
        assert len(fake.requests) == 4 and len(other.requests) == 1


def test_another_model_or_rubric_is_another_judge(tmp_path):
    # red if model, question, answer or a bound of the rubric is left out of the key
    def judged(**options) -> list[float]:
        options = {"model": "m", "answer": "score", "question": "1 to 5: {caption}"} | options
        return OpenAIJudge(fake.url, **options, cache_folder=str(tmp_path))(inputs_of(1)).total.tolist()

    with Fake(says("3")) as fake:
        assert judged() == judged() == [0.5] and len(fake.requests) == 1
        for count, other in enumerate(({"model": "n"}, {"question": "1 to 9: {caption}"}, {"highest": 3.0}), 2):
            judged(**other)
            assert len(fake.requests) == count
        fake.answers = [tokens(yes=0.75, no=0.25)]
        assert judged(answer="yes_no") == [pytest.approx(0.75)]
    assert judged() == [0.5]  # the server is away, and nobody asks


def test_words_and_texts_of_a_chat(tmp_path):
    # red if words are not told from texts, or `more` is left out of the key
    with Fake(tokens(yes=0.75, no=0.25), says("yes")) as fake:
        for _ in range(2):
            chat = OpenAIChat(fake.url, "m", cache_folder=str(tmp_path))
            assert chat.first_words([Turn("q")]) == [{"yes": pytest.approx(0.75), "no": pytest.approx(0.25)}]
            assert chat.written([Turn("q")]) == ["yes"]
        assert len(fake.requests) == 2
        OpenAIChat(fake.url, "m", more={"seed": 1}, cache_folder=str(tmp_path)).written([Turn("q")])
        assert len(fake.requests) == 3


def test_what_is_kept_tells_nobody_anything(tmp_path, monkeypatch):
    # red if the request, its headers or its URL are kept
    monkeypatch.setenv("A_KEY", "very-secret")
    with Fake(says("4")) as fake:
        chat = OpenAIChat(fake.url, "a-model", api_key_env="A_KEY", cache_folder=str(tmp_path))
        chat.written([Turn("a private question", ("cGljdHVyZQ==",))])
        assert "very-secret" in fake.headers[0]["Authorization"]
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for word in (b"secret", b"private", b"cGlj", b"127.0.0.1", b"A_KEY", b"a-model"):
        assert word not in content


def test_a_picture_that_could_not_be_judged_is_not_kept(tmp_path):
    # red if NaN is kept
    with Fake({"body": {"scores": [None]}}, {"body": {"scores": [0.5]}}) as fake:
        options = {"cache_folder": str(tmp_path), "on_failure": "skip_group"}
        with pytest.warns(UserWarning, match="could not judge 1 pictures"):
            assert HttpReward(fake.url, **options)(inputs_of(1)).total.isnan().all()
        assert HttpReward(fake.url, **options)(inputs_of(1)).total.tolist() == [0.5]


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table theirs (a)")


MISTAKES = {
    "no database": (lambda path: path.write_bytes(b"x" * 4096), "file is not a database"),
    "another's": (foreign, "a database of something else"),
    "a folder": (lambda path: path.mkdir(), "unable to open"),
}


@pytest.mark.parametrize(("spoil", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, spoil, words):
    # red if it is written over, told at the first answer, or by a traceback
    spoil(tmp_path / FILE)
    before = None if (tmp_path / FILE).is_dir() else (tmp_path / FILE).read_bytes()
    with pytest.raises(UsageError, match=rf"cache_folder: .*{words}.*name another folder"):
        HttpReward("http://127.0.0.1:9/score", cache_folder=str(tmp_path))
    with pytest.raises(UsageError, match=words):
        OpenAIChat("http://127.0.0.1:9", "m", cache_folder=str(tmp_path)).check()
    assert before is None or (tmp_path / FILE).read_bytes() == before


def test_a_folder_that_is_a_file(tmp_path):
    # red with a traceback of FileExistsError
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cache_folder: .*name another folder"):
        HttpReward("http://127.0.0.1:9/score", cache_folder=str(tmp_path / "file"))


def test_an_answer_that_is_damaged_is_asked_for_again(tmp_path):
    # red if what is no JSON ends the run, or what is no number of this judge is believed
    kept = answers_in(tmp_path)
    keys = [kept.key(number) for number in range(4)]
    kept.keep({key: 1.0 for key in keys})
    with sqlite3.connect(tmp_path / FILE) as table:
        for key, text in zip(keys, ("[1", '"words"', None), strict=False):
            table.execute("update answers set answer = ? where digest = ?", (text, key))
    assert answers_in(tmp_path).known(keys) == {keys[3]: 1.0}


def test_a_plan_makes_no_folder(tmp_path):
    # red if a reward that is built without weights opens its file
    with torch.device("meta"):
        HttpReward("http://127.0.0.1:9/score", cache_folder=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
