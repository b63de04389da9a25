"""The judge's verdicts as a reward, asked of a real service on this machine that works, is slow, or is down."""

import logging
import math
import socket
import sqlite3
import threading
import time
import traceback

import pytest

from hpt_trl.errors import UserError
from hpt_trl.rewards.arguments import RewardArguments
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.judge.verdicts import FILE
from hpt_trl.rewards.loading import load_rewards
from tests.helpers.judge_service import Answer, judge_service, reply

KEY = "sk-not-for-anybody-31415926"


def judged(url, **keys):
    arguments = RewardArguments(judge_url=url, judge_model="grader", **{"judge_retries": 0, **keys})
    (reward,) = load_rewards(["judged_answer"], arguments)
    return reward


def ask(reward, answers, *, answer="12", **columns):
    count = len(answers)
    return reward(
        prompts=[
            [{"role": "system", "content": "Act."}, {"role": "user", "content": f"Question {n}?"}] for n in range(count)
        ],
        completions=[""] * count,
        answer=[answer] * count,
        final_answer=answers,
        **columns,
    )


def honest(_, question):
    """Right is what holds `12`, by the default prompt's place for the answer."""
    text = question["messages"][0]["content"]
    given = text.split("<answer>\n")[1].split("\n</answer>")[0]
    return reply("correct" if "12" in given else "Incorrect.")


def test_verdicts_and_what_is_asked():
    with judge_service(honest) as service:
        values = ask(judged(service.url), ["it is 12", "13", None, "  ", "12"])
        assert values == [1.0, 0.0, 0.0, 0.0, 1.0]
        assert len(service.asked) == 3 and set(service.paths) == {"/v1/chat/completions"}
        question = next(question for question in service.asked if "it is 12" in str(question))
        assert question["model"] == "grader" and question["temperature"] == 0
        (message,) = question["messages"]
        assert "<question>\nQuestion 0?\n</question>\n\n<reference>\n12\n</reference>" in message["content"]
        assert service.authorization == [None] * 3


def test_rows_without_an_answer_several_references_and_the_column_question():
    with judge_service(honest) as service:
        columns = {"completions": [""] * 2, "prompts": ["the whole prompt"] * 2, "final_answer": ["12"] * 2}
        reward = judged(service.url)
        values = reward(answer=[None, ["12", "a dozen"]], question=["Why?", "How many?"], **columns)
        assert values == [None, 1.0]
        (prompt,) = service.prompts
        assert "How many?" in prompt and "12\nor: a dozen" in prompt and "whole prompt" not in prompt


def test_an_answer_cannot_take_the_places_of_the_prompt():
    with judge_service(honest) as service:
        ask(judged(service.url), ["{reference} {question} {answer}"])
        assert "<answer>\n{reference} {question} {answer}\n</answer>" in service.prompts[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("CORRECT", 1.0),
        ("**Correct.**", 1.0),
        ("Verdict: correct", 1.0),
        ("<judge>True</judge>", 1.0),
        ("yes\n", 1.0),
        ("<think>It is not incorrect…</think>\n\ncorrect", 1.0),
        (r"\boxed{incorrect}", None),
        ("incorrect", 0.0),
        ("<judge>False</judge>", 0.0),
        ("not correct", None),
        ("correct or incorrect", None),
        ("The answer is correct", None),
        ("", None),
        (None, None),
        ([{"type": "text", "text": "correct"}], None),
    ],
)
def test_replies(text, value):
    with judge_service(lambda number, _: reply("correct") if number == 1 else reply(text)) as service:
        reward = judged(service.url)
        assert ask(reward, ["first"]) == [1.0]
        (given,) = ask(reward, ["second"])
        assert math.isnan(given) if value is None else given == value


BROKEN = {
    "500": Answer("over", status=500),
    "no JSON": Answer("<html>Welcome</html>"),
    "another JSON": Answer({"error": {"message": "no such model"}}),
    "a list": Answer([]),
    "no choices": Answer({"choices": []}),
    "401": Answer({"error": f"Incorrect API key provided: {KEY}"}, status=401),
    "slow": Answer({}, wait=1.0),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_fails_has_no_value_and_is_said_once(kind, caplog, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)

    def behave(number, question):
        return BROKEN[kind] if "broken" in question["messages"][0]["content"] else reply("correct")

    logged = []
    with judge_service(behave) as service, caplog.at_level(logging.WARNING):
        reward = judged(service.url, judge_timeout=0.5, judge_api_key_env="JUDGE_API_KEY")
        for _ in range(2):
            values = ask(reward, ["fine", "broken", None], log_metric=lambda *pair: logged.append(pair))
            assert values[0] == 1.0 and math.isnan(values[1]) and values[2] == 0.0
        assert [name for name, _ in logged] == ["judge/unscored", "judge/asked"] * 2
        assert [value for _, value in logged] == [0.5, 1.0, 0.5, 0.5]
    (record,) = caplog.records
    assert "1 of 2 questions of a batch had no verdict" in record.getMessage()
    assert KEY not in caplog.text


def test_the_guard_hands_a_missing_verdict_on_as_a_rollout_to_drop(caplog):
    with judge_service(lambda number, _: reply("perhaps") if number == 2 else reply("correct")) as service:
        reward = guard(judged(service.url, judge_concurrency=1))
        assert ask(reward, ["a", "b", "c"]) == [1.0, math.inf, 1.0]
    assert "`judged_answer` is nan; the row is not trained on" in caplog.text


def test_a_service_that_mends_is_asked_again():
    with judge_service(lambda number, _: Answer("", status=503) if number < 3 else reply("correct")) as service:
        assert ask(judged(service.url, judge_retries=2), ["a"]) == [1.0]
        assert len(service.asked) == 3


def test_too_many_questions_wait_as_long_as_the_service_says():
    def behave(number, _):
        return Answer("", status=429, headers={"Retry-After": "1"}) if number == 1 else reply("correct")

    with judge_service(behave) as service:
        assert ask(judged(service.url, judge_retries=1), ["a"]) == [1.0]
        assert service.times[1] - service.times[0] >= 1


def test_a_judge_that_is_down_at_the_first_batch_ends_the_run():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=rf"the judge at {url} answered no question of the first batch") as caught:
        ask(guard(judged(url)), ["a", "b"])
    assert "judge_url" in str(caught.value)


def test_a_judge_that_goes_down_ends_the_run_at_the_third_batch_in_a_row(caplog):
    working = {"now": True}
    with judge_service(lambda *_: reply("correct") if working["now"] else Answer("", status=500)) as service:
        reward = judged(service.url)
        number = iter(range(1000))

        def batch():
            return ask(reward, [f"answer {next(number)}", f"answer {next(number)}"])

        assert batch() == [1.0, 1.0]
        for _ in range(2):
            working["now"] = False
            assert all(math.isnan(value) for value in batch() + batch())
            # What is kept asks nothing and so says nothing of the judge.
            assert ask(reward, ["answer 0"]) == [1.0]
            working["now"] = True
            assert batch() == [1.0, 1.0]
        working["now"] = False
        batch(), batch()
        with pytest.raises(UserError, match=r"answered no question of 3 batches in a row.*500"):
            batch()
    assert len([record for record in caplog.records if "had no verdict" in record.getMessage()]) == 1


def test_a_judge_that_is_down_is_not_asked_for_every_answer():
    with judge_service(lambda *_: Answer("", status=500)) as service:
        with pytest.raises(UserError, match=r"the last 40: .*500"):
            ask(judged(service.url, judge_concurrency=4), [f"answer {number}" for number in range(40)])
        assert 4 <= len(service.asked) <= 8


def test_several_are_asked_at_a_time_and_no_more():
    def behave(*_):
        answer = reply("correct")
        answer.wait = 0.1
        return answer

    with judge_service(behave) as service:
        start = time.monotonic()
        assert ask(judged(service.url, judge_concurrency=4), [str(number) for number in range(16)]) == [1.0] * 16
        assert service.most_at_once == 4 and time.monotonic() - start < 1.2


def test_the_same_question_is_asked_once(tmp_path):
    with judge_service(honest) as service:
        keys = {"judge_cache": str(tmp_path / "verdicts")}
        reward = judged(service.url, **keys)
        prompts = [[{"role": "user", "content": "How many?"}]] * 4
        columns = {"prompts": prompts, "completions": [""] * 4, "answer": ["12"] * 4}
        assert reward(final_answer=["12", "12", "13", "12"], **columns) == [1.0, 1.0, 0.0, 1.0]
        assert len(service.asked) == 2
        # In memory, and by another run from the folder.
        assert reward(final_answer=["13", "13", "12", "13"], **columns) == [0.0, 0.0, 1.0, 0.0]
        assert judged(service.url, **keys)(final_answer=["12", "13", "12", "13"], **columns) == [1.0, 0.0, 1.0, 0.0]
        assert len(service.asked) == 2
        # Another model, prompt, reference or question is another one.
        other = RewardArguments(judge_url=service.url, judge_model="another", **keys)
        assert load_rewards(["judged_answer"], other)[0](final_answer=["12"] * 4, **columns) == [1.0] * 4
        text = "{question} {reference}<answer>\n{answer}\n</answer>"
        assert judged(service.url, judge_prompt=text, **keys)(final_answer=["12"] * 4, **columns) == [1.0] * 4
        assert reward(final_answer=["12"] * 4, **columns | {"answer": ["a dozen"] * 4}) == [1.0] * 4
        assert len(service.asked) == 5
    with sqlite3.connect(tmp_path / "verdicts" / FILE) as file:
        rows = file.execute("select model, question, reference, answer, reply, verdict from verdicts").fetchall()
    assert len(rows) == 5 and ("grader", "How many?", "12", "13", "Incorrect.", 0) in rows


def test_what_failed_is_not_kept(tmp_path):
    with judge_service(lambda number, _: reply("correct" if number != 2 else "hm")) as service:
        reward = judged(service.url, judge_concurrency=1, judge_cache=str(tmp_path))
        assert math.isnan(ask(reward, ["a", "b"])[1])
        assert ask(reward, ["a", "b"]) == [1.0, 1.0] and len(service.asked) == 3


def test_several_processes_may_share_a_cache(tmp_path):
    with judge_service(honest) as service:
        rewards = [judged(service.url, judge_cache=str(tmp_path)) for _ in range(4)]
        found = {}

        def work(place):
            found[place] = ask(rewards[place], [f"{number} of 12" for number in range(place, place + 20)])

        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {place: [1.0] * 20 for place in range(4)}


def test_a_cache_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / FILE).write_text("no database, and long enough to be looked at by sqlite " * 20)
    with judge_service(honest) as service, pytest.raises(UserError, match=rf"judge_cache: .*{FILE} cannot be used"):
        ask(judged(service.url, judge_cache=str(tmp_path)), ["12"])
    with pytest.raises(UserError, match=r"judge_cache: .* is a file; name a folder"):
        judged("http://localhost:1/v1", judge_cache=str(tmp_path / FILE))


# The key whole, and cut where messages end.
@pytest.mark.parametrize("filling", [0, 170, 175])
@pytest.mark.parametrize("status", [401, 500])
def test_the_key_is_sent_and_stands_nowhere(tmp_path, monkeypatch, caplog, capfd, status, filling):
    monkeypatch.setenv("JUDGE_API_KEY", f" {KEY}\n")

    def behave(number, _):
        return reply("correct") if number == 1 else Answer({"error": f"{'-' * filling} {KEY} is wrong"}, status=status)

    with judge_service(behave) as service, caplog.at_level(logging.DEBUG):
        reward = judged(service.url, judge_api_key_env="JUDGE_API_KEY", judge_cache=str(tmp_path))
        assert ask(reward, ["first"]) == [1.0]
        said = []
        for number in range(3):
            try:
                ask(guard(reward), [f"answer {number}"])
            except UserError as error:
                said.append("".join(traceback.format_exception(error)) + repr(error.__context__))
        assert len(said) == 1 and str(status) in said[0]
        assert set(service.authorization) == {f"Bearer {KEY}"}
        shown = [*said, caplog.text, *capfd.readouterr(), repr(reward), repr(vars(reward)), str(reward.settings)]
        assert not any(KEY[:8] in text for text in shown)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_key_that_the_judge_repeats_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with judge_service(lambda *_: reply(f"<!-- {KEY} --> correct")) as service:
        assert ask(judged(service.url, judge_api_key_env="JUDGE_API_KEY", judge_cache=str(tmp_path)), ["a"]) == [1.0]
    assert KEY.encode() not in (tmp_path / FILE).read_bytes()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"judge_url": None}, "`judged_answer` asks a judge, but the recipe has no `judge_url`"),
        ({"judge_model": None}, "the recipe has no `judge_model`"),
        ({"judge_url": "localhost:8000/v1"}, "judge_url: localhost:8000/v1 is no address"),
        ({"judge_url": "http://"}, "is no address"),
        ({"judge_url": "http://host:port/v1"}, "judge_url: it is no address"),
        ({"judge_url": f"http://user:{KEY}@host/v1"}, "without user, password"),
        ({"judge_url": f"http://host/v1?key={KEY}"}, "without user, password"),
        ({"judge_api_key_env": KEY}, "no name of an environment variable"),
        ({"judge_api_key_env": KEY.replace("-", "")}, "what is written there is not set"),
        ({"judge_api_key_env": "NO_SUCH_KEY"}, "`NO_SUCH_KEY` is not set in the environment"),
        ({"judge_api_key_env": "TWO_LINES"}, "`TWO_LINES` holds characters that no header may hold"),
        ({"judge_prompt": "missing.txt"}, "judge_prompt: missing.txt is no file"),
        ({"judge_prompt": "Is {answer} the same as {reference}?"}, r"judge_prompt: the text lacks \{question\}"),
    ],
)
def test_recipes_that_are_refused_before_anything_is_asked(keys, message, monkeypatch):
    monkeypatch.setenv("TWO_LINES", f"{KEY}\r\nX-Header: 1")
    arguments = RewardArguments(**{"judge_url": "http://localhost:1/v1", "judge_model": "grader"} | keys)
    with pytest.raises(UserError, match=message) as caught:
        load_rewards(["judged_answer"], arguments)
    assert KEY not in str(caught.value) and KEY.replace("-", "") not in str(caught.value)


def test_a_prompt_of_one_s_own_from_a_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text('{question}|{reference}|{answer}|{"json": 1}')
    with judge_service(lambda *_: reply("yes")) as service:
        # The address may be written down to the path that is asked.
        assert ask(judged(f"{service.url}/chat/completions", judge_prompt=str(path)), ["a"]) == [1.0]
        assert service.prompts == ['Question 0?|12|a|{"json": 1}'] and service.paths == ["/v1/chat/completions"]
    path.write_text("{question} {anwser}")
    with pytest.raises(UserError, match=r"prompt.txt lacks \{reference\}, \{answer\}"):
        judged("http://localhost:1/v1", judge_prompt=str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"prompt.txt cannot be read"):
        judged("http://localhost:1/v1", judge_prompt=str(path))
