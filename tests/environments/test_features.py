"""Image features kept piece by piece and joined are those that the processor makes of the whole batch at once."""

import random

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaProcessor,
)

from hpt_trl.environments.encoding import PieceEncoder
from hpt_trl.environments.features import features_of, join
from hpt_trl.environments.pieces import Context, Segment
from hpt_trl.errors import UserError
from tests.helpers.episodes import encoder_of, picture, with_ends
from tests.helpers.images import TEMPLATE
from tests.helpers.qwen_vl import save_tiny_qwen_vl
from tests.helpers.tiny import build_tokenizer


def llava() -> LlavaProcessor:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def encoders(vlm_path, tmp_path_factory):
    parts = encoder_of(vlm_path)
    parts.processing_class.image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    return {
        "patches": encoder_of(save_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")),
        "rows": encoder_of(vlm_path),
        "rows of parts": parts,
        "images": with_ends(llava()),
    }


LAYOUTS = ["patches", "rows", "rows of parts", "images"]


def sequences(generator: random.Random, count: int, most: int) -> list[list]:
    """Images of each sequence, of many sizes."""
    return [
        [
            picture(generator.randint(16, 80), generator.randint(16, 80), 10 * row + place).image
            for place in range(generator.randint(1, most))
        ]
        for row in range(count)
    ]


def piece(encoder: PieceEncoder, images: list):
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "What?"}]
    return encoder.prompt([{"role": "user", "content": content}], images)


def own(encoder, images: list[list]) -> dict:
    """The features of one call with all sequences."""
    messages = [
        [{"role": "user", "content": [*({"type": "image"} for _ in row), {"type": "text", "text": "What?"}]}]
        for row in images
    ]
    texts = [encoder.render(one, {}, generation_prompt=True) for one in messages]
    inputs = encoder.processing_class(text=texts, images=images, padding=True, return_tensors="pt")
    return features_of(dict(inputs), "the processor")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_joined_as_the_processor_makes_a_batch(encoders, layout, seed):
    encoder, generator = encoders[layout], random.Random(f"{layout} {seed}")
    pieces, images = PieceEncoder(encoder), sequences(generator, 3, 3)
    # Each sequence in one piece, and each image in a piece of its own.
    for cut in (False, True):
        of_pieces = [
            [piece(pieces, part).features for part in ([[image] for image in row] if cut else [row])] for row in images
        ]
        joined, expected = join(of_pieces), own(encoder, images)
        assert set(joined) == set(expected)
        for name, value in expected.items():
            assert joined[name].shape == value.shape and joined[name].dtype == value.dtype, name
            assert torch.equal(joined[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_without_an_image_stand_between_those_with_one(encoders, layout):
    encoder = encoders[layout]
    pieces = PieceEncoder(encoder)
    [[first], [second]] = sequences(random.Random(layout), 2, 1)
    one, two = (piece(pieces, [image]).features for image in (first, second))
    joined, expected = join([[], [one], [], [two]]), join([[one], [two]])
    for name, value in expected.items():
        if layout.startswith("rows"):
            # Rows keep their places; what stands for no image is zero, which the models leave out.
            assert joined[name].shape == (4, *value.shape[1:]) and not joined[name][[0, 2]].any()
            assert torch.equal(joined[name][[1, 3]], value)
        else:
            assert torch.equal(joined[name], value)
    assert join([[], []]) == {} and join([]) == {}


@pytest.mark.parametrize("layout", ["patches", "rows", "images"])
def test_segments_and_contexts_hold_the_features_in_order(encoders, layout):
    pieces, [images] = PieceEncoder(encoders[layout]), sequences(random.Random(layout), 1, 3)
    parts = [piece(pieces, [image]) for image in images]
    segment = Segment.of(parts, [False] * len(parts))
    context = Context.of(parts)
    assert segment.images == context.images == len(images)
    assert segment.features == context.features == tuple(part.features for part in parts)
    assert segment.ids.tolist() == context.ids == [token for part in parts for token in part.ids]


def test_layouts_that_cannot_be_joined_are_refused():
    for inputs in (
        {"pixel_values": torch.zeros(3, 4), "image_sizes": torch.zeros(1, 2)},
        {"pixel_values": torch.zeros(3, 4)},
        {"image_grid_thw": torch.zeros(1, 3), "second_per_grid": torch.zeros(1)},
    ):
        with pytest.raises(UserError, match="images in environments are not known for OtherProcessor"):
            features_of({"input_ids": torch.zeros(1, 2), **inputs}, "OtherProcessor")
    assert features_of({"input_ids": torch.zeros(1, 2), "mm_token_type_ids": torch.zeros(1, 2)}, "A") == {}
