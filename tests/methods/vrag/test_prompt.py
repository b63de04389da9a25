"""What the prompt says of the environment."""

import pytest

from hpt_trl.data.messages import as_text


@pytest.mark.parametrize("vocabulary", ["tags", "tools"])
@pytest.mark.parametrize("crops", [True, False])
def test_the_prompt_says_how_to_act_and_how_long(searched, vocabulary, crops):
    environment = searched.environment(turns=7, images=3, vocabulary=vocabulary, crops=crops)
    messages = [{"role": "user", "content": "How many pears?"}]
    system, user = environment.prompt(messages)
    assert user == messages[0] and system["role"] == "system"
    text = system["content"]
    assert "You have 7 turns." in text
    assert "You see the last 3 images; an older one is replaced by its name." in text
    tags = ["<search>", "<bbox>", "<answer>"]
    assert [tag in text for tag in tags] == ([True, crops, True] if vocabulary == "tags" else [False] * 3)
    words = ["search shows", "crop shows", "answer ends"]
    assert [word in text for word in words] == ([False] * 3 if vocabulary == "tags" else [True, crops, True])
    assert messages == [{"role": "user", "content": "How many pears?"}]
    assert environment.prompt(messages) == [system, user]


def test_without_a_limit_of_images_no_rule_is_told(searched):
    text = searched.environment(turns=4).prompt([{"role": "user", "content": "?"}])[0]["content"]
    assert "You have 4 turns." in text and "replaced" not in text


def test_instructions_stand_before_those_of_the_row(searched):
    own = {"role": "system", "content": "Answer in French."}
    parts = {"role": "system", "content": [{"type": "text", "text": "Answer in French."}]}
    user = {"role": "user", "content": "?"}
    for system in (own, parts):
        first, second = searched.environment().prompt([system, user])
        assert second == user
        assert as_text([first]).split("\n\n")[-1].strip() == "Answer in French."
        assert as_text([first]).startswith("Answer the question by looking at pages")
    assert parts["content"] == [{"type": "text", "text": "Answer in French."}]


def test_instructions_can_be_left_out(searched):
    messages = [{"role": "user", "content": "?"}]
    assert searched.environment(instructions=False).prompt(messages) is messages
