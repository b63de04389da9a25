"""Evaluations in an environment by the command line: figures, batches, what goes on after a stop, and votes."""

import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText

from hpt_trl.cli import main
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.errors import UserError
from hpt_trl.evaluation.acted import act
from hpt_trl.evaluation.generating import Decoding, Sample, generate
from hpt_trl.evaluation.scoring import Judge, score
from hpt_trl.evaluation.summary import summarised
from hpt_trl.retrieval.index import build_index
from hpt_trl.retrieval.rankers import IndexSettings
from tests.helpers import own_environments
from tests.helpers.episodes import Scripted, encoder_of, picture
from tests.helpers.evaluations import results, run, samples
from tests.helpers.qwen_vl import save_tiny_qwen_vl
from tests.helpers.searching import AS_THEY_ARE, eager, query_of, soon_ended
from tests.helpers.servers import send, serve

MEASURES = [f"vrag/{name}" for name in ("turns", "searches", "crops", "invalid_actions", "answered", "recall")]


@pytest.fixture(scope="module")
def models(vlm_path, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    qwen = save_tiny_qwen_vl(folder / "tiny-qwen-vl")
    return {
        "idefics3": soon_ended(vlm_path, folder / "idefics3"),
        "qwen": soon_ended(qwen, folder / "qwen"),
    }


@pytest.fixture
def acted(evaluation, models, searched, tmp_path):
    """Writes a recipe over six questions about pages, three rollouts each, and returns its path."""
    data = tmp_path / "questions.jsonl"
    rows = [{**row, "query": query_of(row), "answer": "1"} for row in searched.rows[:6]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name: str = "evaluate", **changes: Any) -> str:
        values = {
            "model_name_or_path": models["idefics3"],
            "dataset_name": str(data),
            "environment": "vrag",
            "search_index": str(searched.index),
            "environment_options": {**AS_THEY_ARE, "instructions": False},
            "max_turns": 3,
            "reward_funcs": ["answer_exact", "page_ndcg"],
            "success_reward": "answer_exact",
            "measures": ["avg@k", "maj@k"],
            "n": 3,
            "k": [1, 3],
            "max_completion_length": 60,
            "max_turn_length": 12,
            "per_device_eval_batch_size": 4,
        }
        return evaluation(name, **{**values, **changes})

    return write


def trajectories(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trajectories" / "eval.jsonl").read_text().splitlines()]


def test_results_have_the_means_and_endings_of_rollouts(acted, tmp_path, capsys):
    run("eval", acted(max_turn_length=2))
    drawn, measured = samples(tmp_path / "evaluate"), results(tmp_path / "evaluate")["measures"]
    assert [(line["index"], line["generation"]) for line in drawn] == [(i, g) for i in range(6) for g in range(3)]
    assert sorted(measured["environment"]) == sorted(MEASURES)
    for name in MEASURES:
        values = [line["played"]["measures"][name] for line in drawn]
        assert measured["environment"][name] == pytest.approx(fmean(values))
    endings = Counter(line["played"]["facts"]["ended"] for line in drawn)
    assert measured["ended"] == endings and sum(endings.values()) == 18
    assert set(endings) == {"tokens", "turns"}
    # A model that has learnt nothing does nothing that is valid.
    assert measured["environment"]["vrag/invalid_actions"] == 1.0 and measured["environment"]["vrag/recall"] == 0.0
    assert measured["mean_length"] == pytest.approx(fmean(line["played"]["drawn"] for line in drawn))
    assert measured["truncated"] == pytest.approx(
        fmean(line["played"]["facts"]["ended"] in ("tokens", "context") for line in drawn)
    )
    assert "vrag/invalid_actions" in capsys.readouterr().out
    lines = trajectories(tmp_path / "evaluate")
    assert [line["id"] for line in lines] == [f"eval-{number}" for number in range(1, 7)]
    assert all(line["rewards"] == {"answer_exact": 0.0, "page_ndcg": 0.0} for line in lines)
    run("report", str(tmp_path / "evaluate"))
    assert (tmp_path / "evaluate" / "trajectories" / "index.html").is_file()


@pytest.mark.parametrize("family", ["idefics3", "qwen"])
@pytest.mark.parametrize("limits", [{}, {"max_images": 1}])
def test_rollouts_do_not_depend_on_those_beside_them(acted, searched, models, tmp_path, family, limits):
    keys = {
        **eager(searched, turns=3, max_pixels=64 * 48),
        "model_name_or_path": models[family],
        "n": 1,
        "k": [1],
        "temperature": 0.0,
        "measures": ["avg@k"],
        **limits,
    }
    found = {}
    for size in (1, 4):
        run("eval", acted(f"batch{size}", per_device_eval_batch_size=size, **keys))
        found[size] = [(line["ids"], line["played"]["facts"]) for line in samples(tmp_path / f"batch{size}")]
    assert found[1] == found[4]
    # Some have seen pages, and drawn differently.
    assert any(len(facts["retrieved_pages"]) > 1 for _, facts in found[1])
    assert len({tuple(ids) for ids, _ in found[1]}) > 1


@pytest.mark.parametrize("family", ["idefics3", "qwen"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rollout_of_one_turn_is_a_completion(models, family, temperature):
    """The same prompts with images, answered without an environment by the processor's own batch."""
    model = AutoModelForImageTextToText.from_pretrained(models[family]).eval()
    encoder = encoder_of(models[family])
    shown = [picture(24 + 16 * place, 64 - 8 * place, place).image for place in range(4)]
    prompts = [[{"role": "user", "content": "Which color?" + " Look." * place}] for place in range(4)]
    rows = Dataset.from_list([{"prompt": prompt, "image": image} for prompt, image in zip(prompts, shown, strict=True)])
    acting = Acting(TurnEnvironments(lambda: Scripted([])), encoder, drawn=24)
    decoding = Decoding(max_new_tokens=24, n=2 if temperature else 1, temperature=temperature, seed=5)
    played = [sample for batch in act(model, acting, rows, decoding, batch_size=3) for sample in batch]
    answered = [sample for batch in generate(model, encoder, rows, decoding, batch_size=3) for sample in batch]
    assert [(one.index, one.generation) for one in played] == [(one.index, one.generation) for one in answered]
    assert [one.prompt_ids for one in played] == [one.prompt_ids for one in answered]
    assert [one.ids for one in played] == [one.ids for one in answered]
    assert len({tuple(one.ids) for one in played}) > 1 or not temperature


def test_what_was_shown_is_kept_for_reading(acted, searched, tmp_path):
    run("eval", acted(**eager(searched, turns=3)))
    folder, lines = tmp_path / "evaluate" / "trajectories", trajectories(tmp_path / "evaluate")
    shown = [image for line in lines for turn in line["turns"] for image in turn.get("images", [])]
    assert shown
    for image in shown:
        assert image["kind"] == "page" and image["shown_size"] == [640, 480]
        assert Image.open(folder / image["file"]).tobytes() == searched.raw(image["name"]).tobytes()


def test_votes_are_those_of_the_final_answers(acted, searched, tmp_path):
    run("eval", acted(**eager(searched, turns=3), n=4, k=[1, 2, 4]))
    drawn, measured = samples(tmp_path / "evaluate"), results(tmp_path / "evaluate")["measures"]
    answers = [[line["played"]["facts"]["final_answer"] for line in drawn[4 * row : 4 * row + 4]] for row in range(6)]
    given = [answer for row in answers for answer in row]
    assert len({answer for answer in given if answer is not None}) > 1 and None in given
    assert measured["without_answer"] == pytest.approx(given.count(None) / len(given))
    for k in (1, 2, 4):
        shares = []
        for row in answers:
            of_row = []
            for choice in combinations(row, k):
                votes = Counter(answer for answer in choice if answer is not None)
                most = max(votes.values(), default=0)
                leading = [answer for answer, count in votes.items() if count == most]
                of_row.append(leading.count("1") / len(leading) if leading else 0.0)
            shares.append(fmean(of_row))
        assert measured[f"maj@{k}"] == pytest.approx(fmean(shares))
    assert measured["avg@4"] == pytest.approx(given.count("1") / len(given))


def test_an_evaluation_whose_service_goes_down_goes_on_and_draws_nothing_twice(acted, searched, tmp_path, capsys):
    most = [10**9]

    def answer(handler, asked):
        if asked.number > most[0]:
            return send(handler, {"error": "gone"}, 503)
        hits = searched.engine.search(asked.params["queries"], 10)
        return send(handler, [[{"image_file": f"img/{hit.name}.png"} for hit in row] for row in hits])

    with serve(answer) as server:
        options = {"images": str(searched.pages / "images"), "retries": 0}
        keys = eager(searched, turns=3, **{**options, "index": server.address})
        run("eval", acted("whole", **keys))
        questions = len(server.asked)
        assert questions >= 6
        # The first process is gone, and what it kept of the service's answers; so is the service before the end.
        own_environments.ENGINES.clear()
        most[0] = 2 * questions - 2
        assert main(["eval", acted("stopped", **keys)]) == 2
        told = capsys.readouterr().err
        assert "does not answer" in told and "503" in told and "Traceback" not in told
        assert "/questions.jsonl, line " in told
        folder = tmp_path / "stopped"
        [part] = folder.glob("samples.*.part")
        kept = [json.loads(line) for line in part.read_text().splitlines()]
        assert 0 < len(kept) < 18 and not (folder / "results.json").exists()
        # The same words once more, with the service back.
        own_environments.ENGINES.clear()
        most[0] = 10**9
        before = len(server.asked)
        run("eval", acted("stopped", **keys))
        assert f"{len(kept)} completions are there and are not drawn again" in capsys.readouterr().out
        assert len(server.asked) - before < questions
    assert samples(folder) == samples(tmp_path / "whole")
    ours, theirs = (results(one)["measures"] for one in (folder, tmp_path / "whole"))
    assert ours == theirs
    assert trajectories(folder) == trajectories(tmp_path / "whole")
    for line in trajectories(folder):
        for turn in line["turns"]:
            for image in turn.get("images", []):
                assert (folder / "trajectories" / image["file"]).is_file()
    # A finished one is only scored anew, by other rewards.
    run("eval", acted("stopped", **{**keys, "reward_funcs": ["answer_match"], "success_reward": "answer_match"}))
    assert "18 completions are there and are not drawn again" in capsys.readouterr().out
    assert list(results(folder)["measures"]["rewards"]) == ["answer_match"]
    assert results(folder)["measures"]["ended"] == ours["ended"]


def test_rollouts_of_another_index_or_other_limits_are_another_evaluation(acted, searched, tmp_path, capsys):
    index = tmp_path / "index"
    build_index(searched.pages, index, IndexSettings())
    run("eval", acted(search_index=str(index)))
    # Built again of the same pages it is the same.
    build_index(searched.pages, index, IndexSettings(), overwrite=True)
    run("eval", acted(search_index=str(index)))
    assert "18 completions are there and are not drawn again" in capsys.readouterr().out
    for changes, name in (
        ({"max_turns": 2}, "limit_turns 3 there, 2 here"),
        ({"max_images": 1}, "limit_images null there, 1 here"),
        ({"max_context_length": 400}, "limit_context"),
        ({"environment_options": {**AS_THEY_ARE, "instructions": True}}, "environment_options"),
        (eager(searched), "environment "),
    ):
        assert main(["eval", acted(**{"search_index": str(index), **changes})]) == 2
        told = capsys.readouterr().err
        assert "holds completions of another evaluation" in told and name in told
    other = tmp_path / "other-pages"
    shutil.copytree(searched.pages, other)
    lines = (other / "pages.jsonl").read_text().splitlines()
    (other / "pages.jsonl").write_text(
        "".join(line + "\n" for line in [lines[0].replace('text": "', 'text": "more '), *lines[1:]])
    )
    build_index(other, index, IndexSettings(), overwrite=True)
    assert main(["eval", acted(search_index=str(index))]) == 2
    assert "search_engine" in capsys.readouterr().err
    run("eval", acted(search_index=str(index)), "--overwrite", "true")


def test_a_fault_in_the_midst_is_told_with_its_row(acted, capsys):
    keys = {
        "environment": "tests.helpers.own_environments.FailsLater",
        "search_index": None,
        "environment_options": None,
    }
    assert main(["eval", acted(**keys, reward_funcs=["tests.helpers.evaluations.remainder"], success_reward=None)]) == 2
    told = capsys.readouterr().err
    assert (
        "/questions.jsonl, line " in told
        and "row " not in told
        and "`act` of the environment FailsLater raised RuntimeError: the shelf fell down (" in told
    )
    assert "Traceback" not in told


@pytest.mark.parametrize("what", ["measures", "facts"])
def test_rollouts_that_tell_other_things_than_the_first(what, vlm_path):
    def right(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    told = [{"measures": {"a/a": 1.0}, "facts": {"ended": "answer"}, "drawn": 1, "completion": []} for _ in range(2)]
    told[1][what] = {"b/b": 1.0} | told[1][what]
    drawn = [Sample(place, 0, [1], [2], False, one) for place, one in enumerate(told)]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Which?"}]}] * 2)
    with pytest.raises(UserError, match=f"`{what}` of the environment tells `b/b` of some rollouts alone"):
        summarised(score(drawn, rows, encoder_of(vlm_path), Judge.of([right])), Judge.of([right]))
