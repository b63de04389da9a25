"""Functions as tools: what the model reads of its calls, and HPT that learns from trajectories with calls."""

import pytest
import torch
from datasets import Dataset

from hpt_trl import HybridPostConfig, HybridPostTrainer, ToolEnvironment, TurnEnvironments, UserError
from hpt_trl.data.objects import with_column
from hpt_trl.environments.protocol import Turn
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.models.whole_models import resolve_model


def add(first: int, second: int) -> int:
    """Adds two numbers.

    Args:
        first: One.
        second: The other.
    """
    return first + second


def lookup(word: str) -> str:
    """Looks a word up.

    Args:
        word: What is looked up.
    """
    return {"door": "an opening"}[word]


def called(*calls: tuple[str, object]) -> Turn:
    made = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return Turn("", {"role": "assistant", "content": "", "tool_calls": made})


def test_what_a_function_returns_is_read():
    environment = ToolEnvironment([add, lookup])
    assert [tool["function"]["name"] for tool in environment.tools] == ["add", "lookup"]
    shown = environment.act(called(("add", {"first": 2, "second": 3})))
    assert (shown.text, shown.role, shown.name) == ("5", "tool", "add")
    both = environment.act(called(("add", '{"first": 1, "second": 1}'), ("lookup", {"word": "door"})))
    assert both.text == "add: 2\nlookup: an opening"
    assert environment.act(Turn(" It is 5. ", {"role": "assistant", "content": " It is 5. "})) == "answer"
    assert environment.facts() == {"final_answer": "It is 5.", "calls": 3, "failures": 0}
    assert environment.measures() == {"tools/calls": 3.0, "tools/failures": 0.0, "tools/answered": 1.0}
    environment.start({})
    # A turn that was cut is no answer.
    environment.act(Turn("It is", {"role": "assistant", "content": "It is"}, cut=True))
    assert environment.facts() == {"final_answer": None, "calls": 0, "failures": 0}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ad", {}, "error: there is no tool 'ad'; there are add, lookup"),
        ("add", {"first": 1}, "error: missing a required argument: 'second'"),
        ("add", {"first": 1, "second": 2, "third": 3}, "error: got an unexpected keyword argument 'third'"),
        ("add", "[1, 2", "error: "),
        ("add", [1, 2], "error: "),
        ("add", {"first": "a", "second": 1}, "error: can only concatenate str"),
        ("lookup", {"word": "window"}, "error: 'window'"),
        (None, None, "error: there is no tool 'None'"),
    ],
)
def test_what_goes_wrong_is_read_too(name, arguments, said):
    environment = ToolEnvironment([add, lookup])
    assert environment.act(called((name, arguments))).text.startswith(said)
    assert environment.facts()["failures"] == 1


def test_a_function_cannot_leave_the_process():
    def leave() -> str:
        """Leaves."""
        raise SystemExit("bye")

    environment = ToolEnvironment([leave])
    assert environment.act(called(("leave", {}))).text == "error: bye"
    assert environment.facts()["failures"] == 1


def test_functions_that_are_no_tools():
    def bare(value):
        return value

    with pytest.raises(UserError, match="the function bare cannot be a tool"):
        ToolEnvironment([bare])
    with pytest.raises(UserError, match="same name"):
        ToolEnvironment([add, add])


def right(final_answer: list[str | None], answer: list[str], **_: object) -> list[float]:
    return [float(given == wanted) for given, wanted in zip(final_answer, answer, strict=True)]


def test_hpt_learns_from_trajectories_with_calls(tmp_path):
    """Their calls are executed, and the tokens of the answer are those of a run that reads what they returned."""
    sums = [(2, 3), (4, 5)]
    rows = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"{a} + {b}?"}], "answer": str(a + b)} for a, b in sums]
    )
    trajectories = [
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "add", "arguments": {"first": a, "second": b}}}
                ],
            },
            {"role": "assistant", "content": str(a + b)},
        ]
        for a, b in sums
    ]
    rows = with_column(rows, "completion", trajectories)
    config = HybridPostConfig(
        str(tmp_path),
        num_generations=2,
        switch_gate=2,
        per_device_train_batch_size=4,
        max_completion_length=24,
        max_steps=1,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        bf16=False,
        use_cpu=True,
    )
    path = resolve_model("tiny-vlm")
    seen: list[str] = []

    def adding(first: int, second: int) -> int:
        """Adds two numbers.

        Args:
            first: One.
            second: The other.
        """
        seen.append(f"{first} + {second}")
        return first + second

    adding.__name__ = "add"
    trainer = HybridPostTrainer(
        path,
        right,
        config,
        rows,
        processing_class=load_tokenizer("tiny-vlm"),
        environment=TurnEnvironments(lambda: ToolEnvironment([adding]), max_turns=2),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["hpt/sft_fraction"] == 1.0 and log["hpt/demo_nll"] > 0 and "tools/calls" in log
    assert sorted(seen) == ["2 + 3", "4 + 5"]
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    episode = trainer._acting.demonstration(rows[0], "completion")
    text = trainer._tokenizer.decode(episode.flat.completion_ids)
    drawn = [token for token, own in zip(episode.flat.completion_ids, episode.flat.drawn, strict=True) if own]
    assert "<|im_start|>tool\n5<|im_end|>" in text and "tool\n5" not in trainer._tokenizer.decode(drawn)
