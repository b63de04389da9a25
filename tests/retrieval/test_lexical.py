"""BM25 on disk against the formula, its order among equals, and words of several languages."""

import math
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from hpt_trl.errors import UserError
from hpt_trl.retrieval.lexical import Lexical, Words
from tests.helpers.processes import ENVIRONMENT


def bm25(query, documents, k1=1.5, b=0.75):
    """Lucene's BM25 in plain Python.

    idf = ln(1 + (N - n + 0.5) / (n + 0.5)), times tf / (tf + k1 (1 - b + b length / mean)).
    """
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        counts, score = Counter(words), 0.0
        for word in query:
            n = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            tf = counts[word]
            score += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula():
    draw = random.Random(0)
    words = [f"w{number}" for number in range(40)]
    documents = [[draw.choice(words) for _ in range(draw.randint(1, 30))] for _ in range(60)]
    index = Lexical.build([" ".join(document) for document in documents], "none")
    for _ in range(50):
        query = [draw.choice([*words, "unknown"]) for _ in range(draw.randint(1, 5))]
        expected = bm25(query, documents)
        order = sorted(range(60), key=lambda place: -expected[place])
        (found,) = index.rank([" ".join(query)], 60)
        assert len(found) == sum(score > 0 for score in expected)
        for place, score in found:
            assert score == pytest.approx(expected[place], rel=1e-4)
        assert [expected[place] for place, _ in found] == pytest.approx(
            [expected[place] for place in order[: len(found)]], rel=1e-4
        )
        for top_k in (1, 3, 10):
            assert index.rank([" ".join(query)], top_k) == [found[:top_k]]


def test_equals_stand_in_the_order_of_the_pages():
    index = Lexical.build(["other", *["same words"] * 9, "same words"], "english")
    (found,) = index.rank(["same"], 4)
    assert [place for place, _ in found] == [1, 2, 3, 4]


def test_queries_without_a_known_word_find_nothing():
    index = Lexical.build(["Revenue grew", "", "Costs fell 7"], "english")
    assert index.rank(["zebra", "", "   ", "?!", "the of and", "7"], 5)[:5] == [[], [], [], [], []]
    ((hit,),) = index.rank(["7"], 5)
    assert hit[0] == 2


@pytest.mark.parametrize("texts", [[""], ["", "  \n", "?!"], ["the", "of the"]])
def test_a_corpus_without_words_is_refused(texts):
    with pytest.raises(UserError, match=f"none of the {len(texts)} pages has text"):
        Lexical.build(texts, "english")


def test_words():
    assert Words("english").of("The Growing revenues, of 2021: 7%") == ["grow", "revenu", "2021", "7"]
    assert Words("none").of("The Growing_one") == ["the", "growing", "one"]
    assert Words("german").of("die Straßen und Größen") == ["strass", "gross"]
    assert Words("finnish").of("talot") == ["talo"]
    assert Words("none").of("北京 2021年 Tōkyō") == ["北", "京", "2021", "年", "tōkyō"]
    with pytest.raises(UserError, match=r"no language `englisch` for words. Did you mean `english`"):
        Words("englisch")


def test_what_is_loaded_ranks_as_what_was_built(tmp_path):
    texts = ["Norvik revenue grew", "Tarn costs fell", "Norvik staff"]
    index = Lexical.build(texts, "english")
    index.save(tmp_path / "ranking")
    loaded = Lexical.load(tmp_path / "ranking", "english")
    queries = ["norvik", "growing costs", "nothing"]
    assert loaded.rank(queries, 3) == index.rank(queries, 3)


def test_files_are_the_same_in_each_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from hpt_trl.retrieval.lexical import Lexical;"
        "Lexical.build(['b c a', 'd a e f g', 'growing growth'], 'english').save(Path(sys.argv[1]))"
    )
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = ENVIRONMENT | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
        contents.append({name: (folder / name).read_bytes() for name in os.listdir(folder)})
    assert contents[0] == contents[1]
