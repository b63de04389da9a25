"""A sample of `make test-faults`: kills that come to the same run, and that its verdicts see what is wrong."""

import json
import os
import random
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.faults import campaign, report
from tests.faults.damaging import damage, judged, ways_for
from tests.faults.events import Kill, phases
from tests.faults.keeping import is_kept
from tests.faults.killing import Killed, drawn, first_words
from tests.faults.outcomes import differing, outcome
from tests.faults.runs import Ended
from tests.faults.scenarios import all_scenarios
from tests.faults.verdicts import (
    ACCEPTED,
    BROKEN,
    DIVERGED,
    HARMLESS,
    IDENTICAL,
    REFUSED,
    TOLD,
    TRACEBACK,
    Verdict,
    advised,
    after_kill,
    done_again,
    fault_of,
    logged_steps,
)
from tests.faults.workshop import Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    shop = Workshop(tmp_path_factory.mktemp("faults") / "shop")
    yield shop
    shop.close()


def test_a_run_that_is_killed_twice_goes_on_to_the_same_end(shop):
    # Within the second save, and again as the model of the end is written.
    (scenario,) = (one for one in all_scenarios() if one.id == "kill/ppo/save/3")
    verdict, noted = scenario.do(shop)
    assert (verdict.word, len(noted["at"]), noted["phase"]) == (IDENTICAL, 2, "saving"), (verdict, noted)
    assert verdict.newest == verdict.went_on_from > 0 and noted["lost"] in (0, 1)


def test_a_run_without_its_states_is_seen_to_diverge(shop):
    shop.reference("ppo")
    folder = shop.stopped("ppo")
    shop.control = "states"
    verdict = after_kill(shop.going_on("ppo", folder), folder, shop.reference("ppo").outcome)
    shop.control = None
    assert verdict.word == DIVERGED and "model.safetensors" in verdict.differs
    assert verdict.went_on_from == 4 == verdict.newest


def test_an_outcome_is_of_all_that_a_run_says_but_times(shop, tmp_path):
    whole = shop.reference("ppo")
    folder = shop.finished("ppo") / "out"
    assert differing(outcome(folder), whole.outcome) == []
    for name in (
        "model.safetensors",
        "checkpoint-6/optimizer.pt",
        "metrics.jsonl",
        "value_head/value_head.safetensors",
    ):
        assert name in whole.outcome
    copy = shutil.copytree(folder, tmp_path / "out")
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text.replace('"step_time": ', '"step_time": 1'))
    assert differing(outcome(copy), whole.outcome) == []
    (copy / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1))
    (copy / "checkpoint-6" / "rng_state.pth").unlink()
    assert differing(outcome(copy), whole.outcome) == ["checkpoint-6/rng_state.pth", "metrics.jsonl"]


def test_a_kill_comes_to_the_same_place_each_time(shop):
    whole = shop.reference("ppo")
    assert drawn(random.Random("a"), "save", whole, False) == drawn(random.Random("a"), "save", whole, False)
    saving = whole.phases.index("saving")
    left = []
    for _ in range(2):
        folder = shop.place("ppo")
        ended = shop.server().killed(["run", str(folder / "recipe.yaml")], folder, Kill(saving + 3))
        assert ended.code == -9
        left.append(sorted(str(path.relative_to(folder)) for path in (folder / "out").rglob("*")))
    assert left[0] == left[1] and any("checkpoint-2" in name for name in left[0])


def test_phases_of_a_run():
    events = [("open", "out/recipe.yaml"), ("os.mkdir", "out/checkpoint-2"), ("open", "out/metrics.jsonl")]
    events += [("os.remove", "out/checkpoint-2/optimizer.pt"), ("open", "out/results.json")]
    assert phases(events) == ["opening", "saving", "training", "rotating", "closing"]


def test_what_a_user_does_after_an_error(tmp_path):
    resume = ["--resume_from_checkpoint", "true"]
    none = "--resume_from_checkpoint on the command line: out holds no checkpoint. Leave the key out to start anew"
    assert advised(none, resume, ["--resume_from_checkpoint true"], tmp_path) == []
    stopped = "out holds a run that stopped after checkpoint-4. Go on with `--resume_from_checkpoint true`."
    assert advised(stopped, [], [""], tmp_path) == resume
    finished = "out holds a finished run. Name another `--output_dir`, or start anew with `--overwrite true`"
    assert advised(finished, [], [""], tmp_path) == ["--overwrite", "true"]
    before = "out/checkpoint-4/optimizer.pt is missing. The last whole one before it is out/checkpoint-2."
    named = ["--resume_from_checkpoint", "out/checkpoint-2"]
    assert advised(before, ["--resume_from_checkpoint", "out/checkpoint-4"], [], tmp_path) == named
    assert advised("the key `x` is not known", [], [""], tmp_path) is None


def test_what_is_wrong_with_an_end():
    assert fault_of(Ended([0], "", False, 1.0)) is None and fault_of(Ended([2], "error: no", False, 1.0)) is None
    said = "Traceback (most recent call last):\n"
    assert fault_of(Ended([2], said, False, 1.0)) == fault_of(Ended([-11], "", False, 1.0)) == TRACEBACK


def test_every_scenario_has_an_id_and_its_place_in_a_fixed_order():
    found = [scenario.id for scenario in all_scenarios(7)]
    assert len(set(found)) == len(found) and found == [scenario.id for scenario in all_scenarios(7)]
    assert found != [scenario.id for scenario in all_scenarios(8)]
    assert sum(isinstance(scenario, Killed) for scenario in all_scenarios()) >= 300
    assert first_words("sft") and not first_words("index")


def lines(*words: str, **settings) -> list[dict]:
    shared = {"commit": "c", "seed": 0, "time": "2026-11-27T01:00", "seconds": 36.0} | settings
    return [shared | {"id": f"{settings['kind']}/sft/save/{n}", "word": word} for n, word in enumerate(words)]


def test_tables_count_what_came_of_the_scenarios_of_the_last_commit():
    found = lines("diverged", kind="kill", commit="b") + lines("identical", "identical", "missed", "hung", kind="kill")
    found += lines("refused", kind="damage", file="checkpoint-4/optimizer.pt", way="flip")
    sums = report.summed(found)
    assert sums["missed"] == 1 and sums["wrong"] == {"kill/sft/save/3": "hung"} and sums["hours"] == 0.05
    page = report.written_into(f"# Page\n\n{report.BEGIN}\nold\n{report.END}\nmore\n", sums)
    head = "| Killed run | number | identical | diverged | accepted damaged | hung |"
    assert f"{head}\n|---|---:|---:|---:|---:|---:|\n| sft | 3 | 2 | 0 | 0 | 1 |\n" in page
    assert "| optimizer.pt | 1 | 1 | 0 | 0 |" in page and "old" not in page and page.endswith("\nmore\n")
    assert report.written_into(page, sums) == page
    with pytest.raises(ValueError, match="lacks the marks"):
        report.written_into("# Page", sums)


def test_steps_that_are_done_again_stand_beside_the_kills(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 5}\n{"st')
    assert logged_steps(tmp_path) == 5 and logged_steps(tmp_path / "none") == 0
    assert done_again(5, Verdict(IDENTICAL, went_on_from=4)) == 1
    assert done_again(4, Verdict(IDENTICAL, went_on_from=4)) == 0
    assert done_again(5, Verdict(TRACEBACK)) is None
    found = lines("identical", "identical", "hung", kind="kill")
    for line, lost in zip(found, (2, 1, None), strict=True):
        line["lost"] = lost
    assert "| sft | 3 | 2 | 0 | 0 | 1 | 1.5 | 2 |" in report.section(report.summed(found))


def test_a_campaign_that_is_ended_goes_on_with_what_is_left(tmp_path, monkeypatch):
    class Fault:
        kind = "damage"

        def __init__(self, name):
            self.id, self.do = f"damage/x/{name}", self.does
            self.name = name

        def does(self, shop):
            done.append(self.name)
            if self.name == "ended" and done.count("ended") == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.name == "broken":
                raise KeyError("the scenario itself is wrong")
            return Verdict(REFUSED), {"file": "x", "way": "flip"}

    done, record = [], tmp_path / "faults.jsonl"
    monkeypatch.setattr(campaign, "all_scenarios", lambda seed: [Fault("first"), Fault("ended"), Fault("broken")])
    monkeypatch.setattr(campaign, "Workshop", lambda *_: SimpleNamespace(seed=0, close=lambda: done.append("closed")))
    monkeypatch.setattr(campaign, "commit_of", lambda root: "c")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            campaign.main(["--record", str(record)])
        assert done == ["first", "ended", "closed"] and [line["word"] for line in report.read_records(record)] == [
            REFUSED
        ]
        # As a kill within a write would leave it.
        with record.open("a") as file:
            file.write('{"id": "damage/x/en')
        assert campaign.main(["--record", str(record)]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done[3:] == ["ended", "broken", "closed", "closed"]
    assert {line["id"]: line["word"] for line in report.read_records(record)} == {
        "damage/x/first": REFUSED,
        "damage/x/ended": REFUSED,
        "damage/x/broken": BROKEN,
    }
    assert campaign.main(["--record", str(record)]) == 0 and done[-1] == "closed" and done.count("broken") == 1


def test_what_is_told_names_the_file_and_is_no_weight(tmp_path):
    text, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    warned = f"{text} is not what its run wrote: somebody has changed it, and it is taken as it stands."
    for path, said, differs, word in (
        (text, warned, ["model.safetensors"], TOLD),
        (text, warned.replace("config", "other"), ["model.safetensors"], ACCEPTED),
        (text, "", [], HARMLESS),
        (weights, f"{weights} is not what its run wrote", [], ACCEPTED),
        (tmp_path / "metrics.jsonl", "metrics.jsonl ends at step 3, and the run took 6", ["printed"], TOLD),
    ):
        assert judged(Ended([0], said, False, 1.0), path, tmp_path, lambda differs=differs: differs).word == word
    failed = Ended([2], f"error: {weights} is missing", False, 1.0)
    assert judged(failed, weights, tmp_path, list).word == REFUSED


def test_a_kept_stage_is_told_from_one_that_runs_again():
    said = "[1/2] sft (sft): finished before, not run again\n\n[2/2] dpo (dpo): run anew\n[2/2] dpo: done\n"
    assert is_kept("sft", said) and not is_kept("dpo", said) and not is_kept("pipeline.json", said)


def test_the_page_has_the_figures_of_the_record():
    page = campaign.PAGE.read_text()
    if not campaign.FIGURES.exists():
        assert page.partition(report.BEGIN)[2].partition(report.END)[0].strip() == ""
        return
    assert report.written_into(page, json.loads(campaign.FIGURES.read_text())) == page


def test_damage_changes_a_file_and_nothing_that_shares_it(tmp_path):
    for way in ways_for("x.safetensors", has_other=True):
        path, shared, other = tmp_path / "x.safetensors", tmp_path / "shared", tmp_path / "other"
        for old in (path, shared):
            old.unlink(missing_ok=True)
        save_file({"w": torch.arange(4000.0)}, path)
        other.write_bytes(b"another")
        shared.hardlink_to(path)
        before = path.read_bytes()
        assert damage(path, way, random.Random(0), other)
        assert shared.read_bytes() == before and (way == "delete" or path.read_bytes() != before)
    path.write_bytes(bytes(10))
    assert not damage(path, "zero all", random.Random(0)) and not damage(path, "of another step", random.Random(0))
