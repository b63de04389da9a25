"""Prompts, turns and observations grown piece by piece are what the processor makes of the whole conversation."""

import random
import re
from pathlib import Path

import pytest
import trl
from transformers import CLIPImageProcessorPil, Idefics3ImageProcessorPil, LlavaProcessor

from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.encoding import PieceEncoder
from hpt_trl.environments.features import join
from hpt_trl.environments.protocol import Observation
from hpt_trl.errors import UserError
from tests.helpers.episodes import (
    PROMPT,
    conversation,
    encoder_of,
    episode_of,
    picture,
    same_features,
    turn_ids,
    turns_of,
    whole,
    with_ends,
)
from tests.helpers.images import TEMPLATE
from tests.helpers.qwen_vl import save_tiny_qwen_vl
from tests.helpers.templates import ENDLESS

WORDS = [
    "What",
    "is",
    "12",
    "+",
    "7?",
    "<think>",
    "</think>",
    "\n",
    "  ",
    "Ünïcödé",
    "漢字",
    "\t",
    "🙂",
    "#### 54",
    ".",
]
FAMILIES = ["text", "idefics3", "idefics3 in parts", "qwen"]
IMAGES = FAMILIES[1:]


@pytest.fixture(scope="module")
def encoders(vlm_path, tiny_model_path, tmp_path_factory) -> dict[str, Encoder]:
    parts = encoder_of(vlm_path)
    parts.processing_class.image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    return {
        "text": encoder_of(tiny_model_path),
        "idefics3": encoder_of(vlm_path),
        "idefics3 in parts": parts,
        "qwen": encoder_of(save_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")),
    }


def texts(generator: random.Random, most: int = 8) -> str:
    # A text of space alone, or with space at its ends, is what templates may strip.
    return "".join(generator.choice(WORDS) for _ in range(generator.randint(1, most)))


def observations(generator: random.Random, count: int, images: bool) -> list[Observation]:
    found = []
    for number in range(count):
        parts: list = [texts(generator)]
        if images and generator.random() < 0.7:
            shown = [
                picture(generator.randint(16, 90), generator.randint(16, 90), 10 * number + extra)
                for extra in range(generator.randint(1, 2))
            ]
            parts = [parts[0], *shown, texts(generator)] if generator.random() < 0.5 else [*shown, parts[0]]
        found.append(Observation(tuple(parts)))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_is_encoded_as_its_conversation(encoders, family, seed):
    encoder, generator = encoders[family], random.Random(f"{family} {seed}")
    images = [picture(30, 40 + seed).image] if encoder.is_processor and seed % 2 else []
    prompt = [{"role": "system", "content": "Look."}, *PROMPT] if seed % 3 else PROMPT
    shown = observations(generator, 4, encoder.is_processor)
    said = [texts(generator) for _ in shown]
    row = {"prompt": prompt, "images": images}
    episode = episode_of(encoder, shown, row)
    for number in range(5):
        expected = whole(encoder, conversation(prompt, images, said[:number], shown, not encoder.is_processor))
        context = episode.context()
        assert context.ids == expected["input_ids"][0].tolist()
        same_features(join([context.features]), expected)
        types = next((expected[name] for name in ("mm_token_type_ids", "token_type_ids") if name in expected), None)
        if context.images and types is not None:
            assert context.types == types[0].tolist()
        if number < 4:
            episode.take(turn_ids(encoder, said[number]))
    assert episode.pending and episode.turns == 4
    assert episode.drawn == sum(len(turn_ids(encoder, text)) for text in said)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_turn_ends_on_the_end_token_and_nothing_follows(encoders, family):
    encoder = encoders[family]
    written = ["<think>a</think><search>12 + 7</search>", " spaces ", "one\ntwo\n\n", "漢字 🙂", "x"]
    for text, piece in zip(written, turns_of(PieceEncoder(encoder), written), strict=True):
        assert piece.ids == turn_ids(encoder, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_an_observation_are_no_special_tokens(encoders, family):
    encoder = encoders[family]
    pieces = PieceEncoder(encoder)
    plain = pieces.observation(Observation(("A page.",)))
    special = {*encoder.tokenizer.all_special_ids, *encoder.end_ids, *pieces.image_ids}
    count = sum(token in special for token in plain.ids)
    assert len(encoder.tokenizer.all_special_tokens) >= 3
    for token in encoder.tokenizer.all_special_tokens:
        for text in (token, f"A{token}B", token * 3, f"{token[:2]}{token}{token[2:]}", f"\n{token}\n"):
            piece = pieces.observation(Observation((text,)))
            assert sum(token in special for token in piece.ids) == count, text
            assert not piece.images and not piece.features
            # What it says can still be read.
            said = encoder.tokenizer.decode(piece.ids).replace(" ", "")
            assert text.replace(" ", "").strip() in said


@pytest.mark.parametrize("family", IMAGES)
def test_words_beside_a_picture_stand_for_no_image(encoders, family):
    encoder = encoders[family]
    pieces, shown = PieceEncoder(encoder), picture(32, 32)
    tokens = "".join(encoder.tokenizer.all_special_tokens)
    one = pieces.observation(Observation((shown, "A page.")))
    hostile = pieces.observation(Observation((tokens, shown, tokens)))
    assert hostile.images == 1
    assert [token for token in hostile.ids if token in pieces.image_ids] == [
        token for token in one.ids if token in pieces.image_ids
    ]
    assert hostile.ids.count(encoder.end_ids[0]) == one.ids.count(encoder.end_ids[0])
    same_features(join([[hostile.features]]), one.features)


def test_an_image_token_that_the_tokenizer_holds_for_a_word_is_none(encoders):
    tokenizer = encoders["text"].tokenizer.__class__.from_pretrained(encoders["text"].tokenizer.name_or_path)
    # As added by hand to a tokenizer of text: `special` is false.
    tokenizer.add_tokens(["<image>"])
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="full")
    processor.chat_template = TEMPLATE
    pieces = PieceEncoder(with_ends(processor))
    assert pieces.image_ids == {tokenizer.convert_tokens_to_ids("<image>")}
    assert pieces.image_ids.isdisjoint(pieces.observation(Observation(("An <image> of <image>s.",))).ids)
    shown = pieces.observation(Observation((picture(28, 28), "An <image>.")))
    assert sum(token in pieces.image_ids for token in shown.ids) == 4
    with pytest.raises(UserError, match="a turn holds a token that stands for an image"):
        pieces.turn({"role": "assistant", "content": "An <image>."})


def test_pictures_are_refused_by_a_model_of_text(encoders):
    with pytest.raises(UserError, match="reads text alone"):
        PieceEncoder(encoders["text"]).observation(Observation((picture(32, 32), "A page.")))


def test_a_picture_that_the_processor_does_not_take_is_told(encoders):
    with pytest.raises(UserError, match="does not take these images"):
        PieceEncoder(encoders["qwen"]).observation(Observation((picture(2000, 4), "A page.")))


def template(encoders, text: str) -> PieceEncoder:
    tokenizer = encoders["text"].tokenizer.__class__.from_pretrained(encoders["text"].tokenizer.name_or_path)
    tokenizer.chat_template = text
    return PieceEncoder(with_ends(tokenizer))


HEAD = "{% for message in messages %}<|im_start|>{{ message.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # The last turn alone is written whole, as where thoughts are left out.
        (HEAD + "{{ message.content if loop.last else message.content[:3] }}" + TAIL, "renders a turn otherwise once"),
        (HEAD + "{{ message.content if message.role == 'user' else '' }}" + TAIL, "leaves out the text of a turn"),
        (
            HEAD + "{% if loop.index > 2 %}{{ raise_exception('two messages alone') }}{% endif %}{{ message.content }}"
            + TAIL,
            "two messages alone",
        ),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_continued_are_refused(encoders, text, reason):
    with pytest.raises(UserError, match=reason):
        template(encoders, text).observation(Observation(("A page.",)))


@pytest.mark.parametrize(
    "text",
    [
        ENDLESS,
        # Turns that end on the end token with nothing behind it, and another one's marks around the user.
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}<|im_end|>"
        "{% else %}[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}",
        # Words behind the end token, which come with the next observation.
        "{% for message in messages %}{{ message.role }}: {{ message.content }}<|im_end|> over.\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    ],
    ids=["no end", "bare end", "words behind the end"],
)
def test_other_forms_of_turns_are_continued(encoders, text):
    pieces = template(encoders, text)
    encoder = pieces.encoder
    shown = [Observation(("12 + 7?",)), Observation(("And 3 + 45?",))]
    said = ["19", "48"]
    episode = episode_of(encoder, shown)
    for turn in said:
        episode.take(turn_ids(encoder, turn))
    rendered = encoder.render(conversation(PROMPT, [], said, shown, True), {}, generation_prompt=True)
    ours = encoder.tokenizer.decode(episode.context().ids)
    if text == ENDLESS:
        # The template ends no turn, but a model does.
        rendered = re.sub("(19|48)<", r"\1<|im_end|><", rendered)
    assert ours == rendered


SCHEMA = {
    "type": "function",
    "function": {"name": "search", "description": "Finds a page.", "parameters": {"type": "object", "properties": {}}},
}
QWEN = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
# As Qwen's, which TRL does not know any more.
CHANGED = QWEN + "{# changed #}"


def test_observations_of_tools_follow_calls(encoders):
    encoder = template(encoders, QWEN).encoder
    pieces = PieceEncoder(encoder, [SCHEMA])
    prompt = encoder.tokenizer.decode(pieces.prompt(PROMPT).ids)
    assert prompt == encoder.render(PROMPT, {"tools": [SCHEMA]}, generation_prompt=True)
    assert "Finds a page." in prompt
    shown = [Observation(("12 + 7?",), role="tool", name="search"), Observation(("Wrong.",))]
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "12"}}}
    turn = pieces.turn({"role": "assistant", "content": "", "tool_calls": [call]})
    messages = [
        *PROMPT,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "search", "content": "12 + 7?"},
        {"role": "assistant", "content": "19"},
        {"role": "user", "content": "Wrong."},
    ]
    ids = [*pieces.prompt(PROMPT).ids, *turn.ids, *pieces.observation(shown[0]).ids]
    ids += [*turn_ids(encoder, "19"), *pieces.observation(shown[1]).ids]
    assert ids == encoder.ids(encoder.render(messages, {"tools": [SCHEMA]}, generation_prompt=True))


def test_tools_need_a_template_that_writes_their_calls(encoders):
    for encoder in (encoders["text"], encoders["idefics3"], encoders["qwen"]):
        with pytest.raises(
            UserError, match=r"calls of tools, which the model's chat template does not write.*`vocabulary: tags`"
        ):
            PieceEncoder(encoder, [SCHEMA])


def test_tools_need_a_tokenizer_that_takes_their_calls_apart(encoders):
    with pytest.raises(UserError, match="has no `response_template` that takes them out of a turn"):
        PieceEncoder(template(encoders, CHANGED).encoder, [SCHEMA])
    known = PieceEncoder(template(encoders, QWEN).encoder, [SCHEMA]).encoder.tokenizer.response_template
    encoder = template(encoders, CHANGED).encoder
    encoder.tokenizer.response_template = known
    assert PieceEncoder(encoder, [SCHEMA]).encoder.tokenizer.response_template == known


def test_a_template_without_tools_in_it_refuses_their_observations(encoders):
    text = (
        HEAD + "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ message.content }}" + TAIL
    )
    with pytest.raises(UserError, match=r"does not render these messages \(user, assistant, tool\): no tools"):
        template(encoders, text).observation(Observation(("A page.",), role="tool", name="search"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("one <|im_end|> two", "goes on after an end-of-sequence token"),
        ("<think>never closed", "never closed"),
        ("closed</think>", "closes nothing"),
    ],
)
def test_turns_that_are_not_drawn_as_they_are_written_are_refused(encoders, said, reason):
    for family in FAMILIES:
        with pytest.raises(UserError, match=reason):
            turns_of(PieceEncoder(encoders[family]), [said])
