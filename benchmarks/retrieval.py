r"""How well questions find their pages, with and without rerankers, and what an index of words costs.

    python -m benchmarks.retrieval PAGES --rerankers query_likelihood:smollm2-135m --made 10000 \
        --output benchmarks/results/retrieval-cpu.json
    python -m benchmarks.retrieval --texts gsm8k_train.jsonl question answer --questions 200 \
        --rerankers query_likelihood:smollm2-135m --rerank_depth 10 --rounds 1 --made

PAGES is a folder as `hpt-trl index` reads it, with a questions.jsonl: {"query": ..., "reference_pages": [...]}. What is
measured is recall among the first page and the first five, and NDCG of the first five, of the index by itself and with
each reranker over its first pages; the 95 % interval is Wilson's, of recall@1. In each round every side answers all
questions, in an order that moves on from round to round; of the rounds the median counts.

`--texts` makes such a folder of a file of JSON lines: the second column of each is the text of a page, the first its
question. Their images are one white pixel each, which an index of words does not look at. Where a question does not
name its page, there is something to rank.

The speed at `--made` pages is that of an index of words alone, without images. Its pages are made of the given ones: as
long as these are, of words drawn at random from all of theirs, so that they share fewer rare words than real pages do.
The questions are the given ones.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shared import parser_of, processors, write_report
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.files import lines_of
from hpt_trl.retrieval.engine import RerankedEngine, SearchEngine
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.lexical import Lexical
from hpt_trl.retrieval.questions import Question, measure, read_questions, refuse_unknown
from hpt_trl.retrieval.rankers import IndexSettings
from hpt_trl.retrieval.reranking import open_reranker

PLAIN = "index alone"
TOP_K = 5


def main() -> None:
    """Runs the rounds, prints the tables, and writes the figures where a file is named."""
    parser = parser_of(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("pages", nargs="?", help="folder of the pages, with a questions.jsonl")
    source.add_argument("--texts", nargs=3, metavar=("FILE", "QUESTION", "TEXT"), help="a file and two of its columns")
    parser.add_argument("--questions", type=int, help="the first so many; all where it is left out")
    parser.add_argument("--kind", default="lexical", help="of the index")
    parser.add_argument("--model", help="of an index of vectors")
    parser.add_argument("--rerankers", nargs="*", default=[], help="as `hpt-trl search --reranker` takes them")
    parser.add_argument("--rerank_depth", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--made", type=int, nargs="*", default=[10_000], help="pages of the indexes of words")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        source = Path(options.pages) if options.pages else pages_of(*options.texts, Path(folder) / "pages")
        questions = read_questions(source / "questions.jsonl")[: options.questions]
        started = time.perf_counter()
        settings = IndexSettings(kind=options.kind, model=options.model)
        index = build_index(source, Path(folder) / "index", settings).index
        seconds = time.perf_counter() - started
        refuse_unknown(questions, [page.name for page in index.pages], "the index")
        sides: dict[str, SearchEngine] = {PLAIN: index}
        for name in options.rerankers:
            sides[name] = RerankedEngine(index, open_reranker(name), options.rerank_depth)
        report: dict[str, Any] = {
            "machine": f"{len(processors())} x {processors()[0]}",
            "kind": options.kind,
            "pages": len(index),
            "questions": len(questions),
            "build_s": round(seconds, 2),
            "rerank_depth": options.rerank_depth,
            "rounds": options.rounds,
            "found": found(sides, questions, options.rounds),
            "made": [
                made(
                    count,
                    [page.text for page in index.pages],
                    questions,
                    options.rounds,
                    Path(folder) / f"made-{count}",
                )
                for count in options.made
            ],
        }
    print(table(["SIDE", *next(iter(report["found"].values()))], report["found"]))
    if report["made"]:
        print(table(["PAGES", *report["made"][0]], {row["pages"]: row for row in report["made"]}))
    print(json.dumps({key: value for key, value in report.items() if key not in ("found", "made")}))
    write_report(report, options.output)


def pages_of(file: str, question: str, text: str, folder: Path) -> Path:
    """Writes a page for each row of a file of JSON lines, and its question."""
    folder.mkdir()
    rows = [json.loads(line) for line in lines_of(file)]
    pages, questions = [], []
    for number, row in enumerate(rows, start=1):
        Image.new("RGB", (1, 1), "white").save(folder / f"text_{number}.png")
        pages.append({"image": f"text_{number}.png", "text": row[text]})
        questions.append({"query": row[question], "reference_pages": [f"text_{number}"]})
    for name, lines in (("pages.jsonl", pages), ("questions.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def found(sides: dict[str, SearchEngine], questions: Sequence[Question], rounds: int) -> dict[str, dict[str, Any]]:
    """Of each side what it finds, and questions in a second."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    measured: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        names = [*sides]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            measured[name] = measure(sides[name], questions)
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            **{key: round(value, 4) for key, value in measured[name].items()},
            "recall@1_95%": [round(side, 3) for side in wilson(measured[name]["recall@1"], len(questions))],
            "questions_per_second": round(len(questions) / statistics.median(seconds[name]), 1),
        }
        for name in sides
    }


def made(
    count: int, texts: Sequence[str], questions: Sequence[Question], rounds: int, folder: Path
) -> dict[str, float]:
    """What an index of words costs at a number of pages: seconds to build, write and open it, questions in a second."""
    draw = random.Random(0)
    words = [word for text in texts for word in text.split()]
    pages = [" ".join(draw.choices(words, k=len(draw.choice(texts).split()))) for _ in range(count)]
    asked = [question.query for question in questions]
    build, lexical = timed(lambda: Lexical.build(pages, "english"))
    write, _ = timed(lambda: lexical.save(folder))
    opened, lexical = timed(lambda: Lexical.load(folder, "english"))
    answers = [timed(lambda: [lexical.rank([query], TOP_K) for query in asked])[0] for _ in range(rounds)]
    return {
        "pages": count,
        "words_a_page": round(statistics.fmean(len(page.split()) for page in pages), 1),
        "build_s": round(build, 3),
        "write_s": round(write, 3),
        "open_s": round(opened, 3),
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1),
        "questions_per_second": round(len(asked) / statistics.median(answers), 1),
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def table(head: Sequence[str], rows: dict[Any, dict[str, Any]]) -> str:
    """The figures as lines of text."""
    lines = [[name.upper() for name in head], *([str(name), *map(str, row.values())] for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main()
