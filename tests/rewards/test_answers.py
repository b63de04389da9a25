"""Which answers are equal: a table judged by hand, hostile answers, and the child processes that decide."""

# ruff: noqa: RUF001
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from hpt_trl.rewards import mathcheck
from hpt_trl.rewards.answers import pool
from hpt_trl.rewards.answers.hostile import is_hostile
from hpt_trl.rewards.answers.normalising import normalise
from hpt_trl.rewards.answers.pool import Pool, shared_pool
from hpt_trl.rewards.functions import boxed_format, exact_match, math_answer, reasoning_gym, story_score
from hpt_trl.rewards.mathcheck import equal_answers, equal_pairs, needs_sympy
from hpt_trl.rewards.positive_words import PositiveWords

_HERE = Path(__file__).parent
_HOSTILE = (_HERE / "hostile_answers.txt").read_text().splitlines()


def _table():
    """The rows of answers.txt: kind, right verdict, known to be judged wrongly, gold, answer."""
    rows, kind = [], ""
    for line in (_HERE / "answers.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("# "):
            known, line = line.startswith("?"), line.removeprefix("?")
            gold, answer = line[2:].split(" || ")
            rows.append((kind, line[0] == "=", known, gold, answer))
    return rows


def _math_verify_alone(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    try:
        return verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
    # math-verify raises on digits of other scripts.
    except Exception:
        return False


def test_the_table_of_judged_answers():
    """Exactly the pairs marked `?` are judged wrongly, and math-verify alone judges none of them rightly."""
    rows = _table()
    assert len(rows) >= 300 and len({row[3:] for row in rows}) == len(rows)
    ours = equal_pairs([(gold, answer) for *_, gold, answer in rows])
    wrong = [row for row, mine in zip(rows, ours, strict=True) if mine != row[1]]
    assert wrong == [row for row in rows if row[2]]
    assert [row for row in wrong if _math_verify_alone(*row[3:]) == row[1]] == []


@pytest.mark.slow
def test_the_scores_on_the_table():
    """The two numbers of docs/answers.md; run with -s to see them."""
    rows = _table()
    ours = equal_pairs([(gold, answer) for *_, gold, answer in rows])
    alone = [_math_verify_alone(gold, answer) for *_, gold, answer in rows]
    scores = [sum(verdict == row[1] for verdict, row in zip(given, rows, strict=True)) for given in (ours, alone)]
    print(f"of {len(rows)} pairs {scores[0]} are judged rightly, {scores[1]} by math-verify alone")
    assert scores[0] > scores[1]


def test_an_answer_equals_its_own_text():
    for *_, gold, answer in _table():
        assert not answer or equal_answers(answer, answer)
        assert equal_answers(f" {gold} ", gold)


def test_normalising_twice_changes_nothing():
    for *_, gold, answer in _table():
        for text in (gold, answer):
            assert normalise(normalise(text)) == normalise(text), text


@pytest.mark.parametrize("answer", _HOSTILE)
def test_hostile_answers_are_refused_before_they_are_evaluated(answer):
    for gold in ("5", "x+1", "\\frac{1}{2}", "\\sqrt{2}"):
        assert not needs_sympy(gold, answer)
        assert not equal_answers(gold, answer)


_TANGLED = [
    "5\\text{ cm} " + " ".join("abcdefghijklmnopqrstuvwxyz") + " = 1",
    "5\\text{ cm}" + " x" * 24 + " !",
    "5" + " \\text{cm}" * 24 + "=",
    "\\text{a} " * 24 + "^",
    "\\mathbb R\\setminus\\{" * 14 + "5" + "^\\circ\\}" * 14,
    "\\$\\mathbb R\\setminus\\{" * 14 + "5" + "\\}" * 14,
    "-\\$" * 130 + "x",
    "x\\in(" * 40 + "1" + ",1)" * 40,
    "(A) " * 99,
]


@pytest.mark.parametrize("answer", _TANGLED, ids=range(len(_TANGLED)))
def test_reading_an_answer_takes_no_time(answer):
    """In this process, where nothing limits it; each of the first six could be read in 2^n ways."""
    before = time.process_time()
    for other in ("5", "x+1", "A"):
        needs_sympy(other, answer)
        needs_sympy(answer, other)
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    "answer",
    ["2^{2005}", "x^{2024}", "20!", "\\binom{2024}{3}", "10^{-12}", "2^{2^{3}}", "x^{2^{10}}", "100!", "e^{-100}"],
)
def test_what_looks_large_and_can_be_evaluated_is_not_hostile(answer):
    assert not is_hostile(normalise(answer))


def test_a_batch_of_hostile_answers_takes_seconds():
    completions = [f"\\boxed{{{answer}}}" for answer in _HOSTILE * 4][:100]
    equal_answers("x+1", "1+x")
    start = time.perf_counter()
    assert math_answer(completions=completions, answer=[f"x+{n}" for n in range(len(completions))]) == [0.0] * 100
    assert time.perf_counter() - start < 3


@pytest.mark.slow
def test_a_batch_of_answers_that_are_hostile_only_when_evaluated_takes_seconds():
    answers = [
        "(x+y+z)^{100}",
        "(\\sin x+\\cos x)^{200}",
        "(1+\\sqrt2+\\sqrt3)^{500}",
        "\\sum_{k=1}^{99999} \\frac{1}{k}",
    ]
    start = time.perf_counter()
    assert not any(equal_pairs([(f"x+{n}", answers[n % 4]) for n in range(100)]))
    assert time.perf_counter() - start < 45


def test_a_question_that_is_given_up_is_asked_again_and_the_next_one_is_decided():
    answer = "(x+y+z+w)^{300}"
    pair = ("x+1", answer)
    start = time.perf_counter()
    assert equal_pairs([pair, ("x+1", "1+x")]) == [False, True]
    assert time.perf_counter() - start < 20
    assert pair not in mathcheck._verdicts and ("x+1", "1+x") in mathcheck._verdicts
    assert shared_pool().decide([["same", "\\frac{2}{4}", "\\frac{1}{2}"]]) == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_child_that_needs_much_memory_gives_up_and_goes_on(monkeypatch):
    monkeypatch.setattr(pool, "SECONDS", 60.0)
    monkeypatch.setattr(pool, "MEMORY", 120 * 2**20)
    one = Pool(1)
    try:
        # Straight to the child, for the parent would refuse it: a number of 67 megabytes, and powers of it.
        assert one.decide([["same", "1", "2^{2^{29}}"]])[0] is not True
        assert one.decide([["same", "x+1", "1+x"]]) == [True]
        (pid,) = one.pids()
        status = Path(f"/proc/{pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak"))
        assert peak <= 120 * 2**10
    finally:
        one.close()


def test_several_threads_share_the_pool():
    results = []
    threads = [
        threading.Thread(
            target=lambda n=n: results.append(equal_answers(f"\\frac{{{3 * n}x}}{{6}}", f"\\frac{{{n}x}}{{2}}"))
        )
        for n in range(2, 10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [True] * 8


def _child(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


_ASK = """
    from hpt_trl.rewards.mathcheck import equal_answers
    from hpt_trl.rewards.answers.pool import shared_pool
    assert equal_answers('x+1', '1+x')
    print(*shared_pool().pids(), flush=True)
"""


def _ended(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_the_children_end_with_their_parent(how):
    process = _child(_ASK + ("    import time; time.sleep(60)\n" if how == "is killed" else ""))
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids
    if how == "is killed":
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert errors == "" and all(_ended(pid) for pid in pids)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_is_not_for_the_children():
    process = _child(
        _ASK + "    import sys; sys.stdin.readline(); assert equal_answers('x+2', '2+x'); print('still')\n"
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    for pid in pids:
        assert os.getpgid(pid) != os.getpgid(process.pid)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    output, errors = process.communicate("\n", timeout=60) if process.stdin else process.communicate(timeout=60)
    assert "still" in output and errors == ""


def test_the_child_imports_nothing_of_this_package(tmp_path):
    """Not even a file of the user that is named like a module it needs, in the working directory."""
    (tmp_path / "sympy.py").write_text("raise RuntimeError('the wrong sympy')\n")
    code = "from hpt_trl.rewards.mathcheck import equal_answers; print(equal_answers('x+1', '1+x'))"
    environment = {**os.environ, "PYTHONPATH": str(Path(mathcheck.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
    worker = (Path(mathcheck.__file__).parent / "answers" / "worker.py").read_text()
    assert "hpt_trl" not in worker and "torch" not in worker


_MARKS = [
    "0123456789./,-+ ",
    "\\{}[]()frac12sqrt^_ ",
    "½²√π∞–１２٣৪ⅷ①₂¾ /.,x",
    "\ud800\x00\u200b#\n*$ 5\\boxed{}",
    "abcxyz=<>|&%$\\! ",
    "0/.e-E^10%:",
]
_WORDS = re.findall(
    r"\S+",
    r"\frac \boxed{ } { #### \text{ 1/0 /000 \begin{pmatrix} \end{pmatrix} \\ & \cup [0, \infty) \pm \in x= _2 or "
    r"and : , % \% ^ cm $ 5 3/4 \le ! \binom e5 e99999 PM Jan \overline{ \{ \} \mathbb{R}",
)
_GOLDS = ["5", "1/2", "x+1", "(1,2)", "5\\text{ cm}", "[0,1]", "A", "yes", "\\{1,2\\}", "3:4", "x=2,y=3", "1001_2"]


def hostile_texts(count: int, seed: int = 0):
    """Short random texts of marks and LaTeX that readers of numbers and answers trip over."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 3:
            marks = rng.choice(_MARKS)
            yield "".join(rng.choice(marks) for _ in range(rng.randint(0, 14)))
        else:
            yield "".join(rng.choice(_WORDS) for _ in range(rng.randint(0, 9)))


def test_no_completion_makes_a_reward_raise(monkeypatch):
    """All that runs in this process; what sympy is asked, the child answers or does not."""
    monkeypatch.setattr(Pool, "decide", lambda self, questions: [False] * len(questions))
    monkeypatch.setattr(mathcheck, "_verdicts", {})
    texts = list(hostile_texts(5000))
    completions = [*texts, *(f"\\boxed{{{text}}}" for text in texts), *(f"#### {text}" for text in texts)]
    golds = [*texts[::-1], *(_GOLDS * len(texts))[: 2 * len(texts)]]
    assert set(math_answer(completions=completions, answer=golds)) <= {0.0, 1.0}
    assert set(exact_match(completions=completions, answer=golds)) <= {0.0, 1.0}
    assert set(boxed_format(completions=completions)) <= {0.0, 1.0}
    assert set(PositiveWords()(prompts=completions, completions=completions)) <= {-1.0, 1.0}
    scores = story_score(completions=completions, hero=["fox"] * len(completions), thing=["hat"] * len(completions))
    assert all(0 <= score <= 1 for score in scores)


_ODD = [
    None,
    "",
    [],
    [{"role": "assistant", "content": None}],
    [{"role": "assistant", "content": ""}],
    [{"role": "assistant", "content": [{"type": "text", "text": "\\boxed{5}"}]}],
    [{"role": "assistant", "content": [{"type": "image"}]}],
    [{"role": "assistant", "content": [{"type": "text", "text": None}]}],
    [{"role": "assistant", "content": [{"type": "text", "text": 5}, None, "5"]}],
    [{"role": "assistant", "content": 7}],
    [{"role": "assistant", "tool_calls": []}],
    "\\boxed{1.5/2}",
    "\\boxed{.5/2}",
    "\\boxed{1./2}",
    "\\boxed{1/000000}",
    "\\boxed{١/٠}",
    "\\boxed{\ud800}",
    "\\boxed{\0}",
    "\\boxed{" + "{" * 5000 + "}" * 5000 + "}",
    "\\boxed{" + "(" * 300 + ")" * 300 + "}",
    "\\boxed{" + "\\frac{1}{" * 40 + "}" * 40 + "}",
    "#### " + "9" * 100_000,
    "\\boxed{" * 100_000,
    "x" * 1_000_000,
]


@pytest.mark.parametrize("completion", _ODD, ids=range(len(_ODD)))
def test_odd_completions_are_scored(completion):
    from hpt_trl.data.tasks import reasoning_gym as rows

    given = [completion]
    assert math_answer(completions=given, answer=["3/4"])[0] in (0.0, 1.0)
    assert math_answer(completions=given, answer=["x+1"])[0] in (0.0, 1.0)
    assert exact_match(completions=given, answer=["5"]) == [0.0]
    assert boxed_format(completions=given)[0] in (0.0, 1.0)
    assert 0 <= story_score(completions=given, hero=["fox"], thing=["hat"])[0] <= 1
    assert PositiveWords()(prompts=given, completions=given) == [-1.0]
    for task in ("chain_sum", "countdown", "mini_sudoku"):
        train, _ = rows(task, {"size": 1, "test_size": 0}, seed=1)
        assert 0 <= reasoning_gym(completions=given, metadata=train["metadata"])[0] <= 1


def test_decimals_divided_are_right():
    completions = ["\\boxed{1.5/2}", "\\boxed{.5/2}", "\\boxed{1./2}", "\\boxed{1/000000}"]
    assert math_answer(completions=completions, answer=["0.75", "0.25", "0.5", "0"]) == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("x=\\boxed{2} or x=\\boxed{3}", "2,3", 1),
        ("x=\\boxed{2} or x=\\boxed{3}", "2", 0),
        ("So \\boxed{5}.\n#### Verification", "5", 1),
        ("So \\boxed{5}.\n#### Why 5 is right", "5", 1),
        ("#### 1,234 dollars", "1234", 1),
        ("\\boxed{\\text{(A) } 5}", "A", 1),
        ("#### Final answer: 5", "5", 1),
        ("#### Final: 5", "5", 1),
        ("\\fbox{5}", "5", 1),
        ("\\boxed 5", "5", 1),
        ("\\boxed{1} or \\boxed{2} or \\boxed{3}", "2", 0),
    ],
)
def test_math_answer_reads_the_completion(completion, gold, right):
    assert math_answer(completions=[completion], answer=[gold]) == [right]
