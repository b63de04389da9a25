"""Indexes of vectors, one or many a page, of tiny models from random weights, against rankings in plain NumPy."""

import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sentence_transformers")
pytest.importorskip("faiss")

import sentence_transformers

from hpt_trl.errors import UserError
from hpt_trl.retrieval.index import build_index, load_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers import embedders
from tests.helpers.pages import write_corpus

TEXTS = [f"page {number} tells of {number * number} things{' more' * (number % 5)}" for number in range(23)]
QUERIES = ["things of page 7", "more"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedders")
    multi = sentence_transformers.MultiVectorEncoder(embedders.save_text_embedder(folder / "base"))
    multi.save_pretrained(str(folder / "text-multi"))
    return {
        "text_vectors": embedders.save_text_embedder(folder / "text"),
        "image_vectors": embedders.save_image_embedder(folder / "image"),
        "text_multi_vectors": str(folder / "text-multi"),
        "image_multi_vectors": embedders.save_colqwen2(folder / "colqwen2"),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("corpus") / "pages", TEXTS)
    draw = np.random.default_rng(0)
    for number in range(1, len(TEXTS) + 1):
        noise = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 40)).save(folder / f"sub/doc_{number}.png")
    return folder


def expected(kind, model, pages):
    """Scores of every page for every query, from the model's own vectors."""
    images = [Image.open(pages / f"sub/doc_{number}.png").convert("RGB") for number in range(1, len(TEXTS) + 1)]
    contents = images if kind.startswith("image") else TEXTS
    if "multi" in kind:
        encoder = sentence_transformers.MultiVectorEncoder(model)
        embedded = encoder.encode_document(contents, convert_to_numpy=True)
        asked = encoder.encode_query(QUERIES, convert_to_numpy=True)
        return [[float((query @ page.T).max(axis=1).sum()) for page in embedded] for query in asked]
    encoder = sentence_transformers.SentenceTransformer(model)
    embedded, asked = encoder.encode_document(contents), encoder.encode_query(QUERIES)
    embedded = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ embedded.T


@pytest.mark.parametrize("kind", ["text_vectors", "image_vectors", "text_multi_vectors", "image_multi_vectors"])
def test_rankings_are_those_of_the_models_vectors(kind, models, pages, tmp_path):
    settings = IndexSettings(kind=kind, model=models[kind])
    build_index(pages, tmp_path / "index", settings)
    index = load_index(tmp_path / "index")
    for row, scores in zip(index.search(QUERIES, 23), expected(kind, models[kind], pages), strict=True):
        places = [hit.page.number - 1 for hit in row]
        assert sorted(places) == list(range(23))
        # Half precision where a page has many vectors.
        given = [hit.score for hit in row]
        assert given == sorted(given, reverse=True)
        assert given == pytest.approx([float(scores[place]) for place in places], rel=2e-3, abs=2e-3)
    assert [hit.name for hit in index.search(QUERIES, 4)[0]] == [hit.name for hit in index.search(QUERIES, 23)[0][:4]]


@pytest.mark.parametrize("kind", ["text_vectors", "text_multi_vectors"])
def test_pages_without_text_are_not_ranked_by_texts(kind, models, tmp_path):
    write_corpus(tmp_path / "pages", ["first", "", "third"])
    index = build_index(tmp_path / "pages", tmp_path / "index", IndexSettings(kind=kind, model=models[kind])).index
    assert sorted(hit.name for hit in index.search(["x"], 5)[0]) == ["sub/doc_1", "sub/doc_3"] and len(index) == 3
    write_corpus(tmp_path / "empty", ["", ""])
    with pytest.raises(UserError, match="none of the 2 pages has text to search by"):
        build_index(tmp_path / "empty", tmp_path / "other", IndexSettings(kind=kind, model=models[kind]))


def test_other_weights_than_those_it_was_built_with_are_told(tmp_path):
    model = embedders.save_text_embedder(tmp_path / "model")
    write_corpus(tmp_path / "pages")
    build_index(tmp_path / "pages", tmp_path / "index", IndexSettings(kind="text_vectors", model=model))
    shutil.rmtree(model)
    embedders.save_text_embedder(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="embeds a query otherwise than when"):
        load_index(tmp_path / "index")


def test_a_layer_that_is_drawn_anew_is_told(tmp_path):
    model = embedders.save_text_embedder(tmp_path / "model")
    write_corpus(tmp_path / "pages")
    with pytest.raises(UserError, match="lacks a trained layer"):
        build_index(tmp_path / "pages", tmp_path / "index", IndexSettings(kind="text_multi_vectors", model=model))
    assert not (tmp_path / "index").exists()


def test_models_that_do_not_fit_are_told(models, tmp_path):
    write_corpus(tmp_path / "pages")
    for settings, said in (
        ({"kind": "text_vectors"}, "needs a model"),
        ({"kind": "text_vectors", "model": "no/such-model"}, "no/such-model cannot be loaded"),
        ({"kind": "image_vectors", "model": models["text_vectors"]}, "takes no images"),
        ({"kind": "image_multi_vectors", "model": models["text_multi_vectors"]}, "takes no images"),
    ):
        with pytest.raises(UserError, match=said):
            build_index(tmp_path / "pages", tmp_path / "index", IndexSettings(**settings))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("kind", ["text_vectors", "text_multi_vectors"])
def test_damaged_vectors_are_told(kind, models, tmp_path):
    write_corpus(tmp_path / "pages")
    build_index(tmp_path / "pages", tmp_path / "whole", IndexSettings(kind=kind, model=models[kind]))
    for path in sorted((tmp_path / "whole" / "ranking").iterdir()):
        for damage in ("gone", "empty", "half"):
            shutil.copytree(tmp_path / "whole", tmp_path / "index")
            target = tmp_path / "index" / "ranking" / path.name
            content = target.read_bytes()
            target.unlink()
            if damage != "gone":
                target.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
            with pytest.raises(UserError, match="is damaged"):
                load_index(tmp_path / "index")
            shutil.rmtree(tmp_path / "index")
