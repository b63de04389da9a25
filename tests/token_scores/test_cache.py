"""The reference's scores on disk: what they are, and what happens to them when things go wrong."""

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from hpt_trl import Rho1Config, UserError, cli
from hpt_trl.runs import runner
from hpt_trl.token_scores import reference_scores, scoring
from hpt_trl.token_scores.cache import ScoreCache, WithScores, example_key, row_key
from hpt_trl.token_scores.kinds import REFERENCE_NLL
from hpt_trl.token_scores.reference import load_reference
from hpt_trl.token_scores.reference_scores import reference_cache, reference_nll
from hpt_trl.token_scores.scoring import autocast_of
from tests.helpers.processes import ROOT, hpt_trl
from tests.helpers.rho1 import demonstrations, documents
from tests.helpers.stage_runs import weights
from tests.helpers.tiny import save_tiny_model

CPU = torch.device("cpu")
BLOCK = 256


@pytest.fixture
def recipe(tmp_path, tiny_model_path, reference_model_path):
    """Writes a recipe with these keys beside the usual ones and returns its path."""

    def write(**changes) -> str:
        values = {
            "stage": "rho1",
            "model_name_or_path": tiny_model_path,
            "reference_model_name_or_path": reference_model_path,
            "reference_cache_dir": str(tmp_path / "scores"),
            "dataset_name": "stories:documents",
            "dataset_options": {"size": 300, "test_size": 20},
            "packing": True,
            "packing_strategy": "wrapped",
            "max_length": BLOCK,
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "optim": "sgd",
            "save_strategy": "no",
            "bf16": False,
            "use_cpu": True,
            "output_dir": str(tmp_path / "out"),
        }
        path = tmp_path / "rho1.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return str(path)

    return write


@pytest.fixture
def prepared(tmp_path, tiny_model_path, reference_model_path):
    """Rows, collator and config of a training, and `cache()`, which opens its cache."""

    class Prepared:
        def __init__(self, rows: Dataset, **settings):
            settings = {"max_length": 64, "per_device_train_batch_size": 3, "bf16": False} | settings
            self.config = Rho1Config(
                output_dir=str(tmp_path),
                reference_model_name_or_path=settings.pop("reference", reference_model_path),
                reference_cache_dir=str(tmp_path / "scores"),
                use_cpu=True,
                report_to="none",
                **settings,
            )
            self.tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
            trainer = SFTTrainer(tiny_model_path, self.config, train_dataset=rows, processing_class=self.tokenizer)
            self.rows, self.collator = trainer.train_dataset, trainer.data_collator

        def cache(self) -> ScoreCache:
            return reference_cache(self.config, self.tokenizer, self.rows, self.collator, device=CPU)

    return Prepared


def segments(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "scores").glob("*/*.nll"), key=lambda path: path.stat().st_mtime_ns)


def rows_of(segment: Path) -> int:
    """As its header says."""
    return int.from_bytes(segment.read_bytes()[8:16], "little")


def keys_of(segment: Path) -> list[bytes]:
    index = segment.read_bytes()[40:]
    return [index[8 * row : 8 * row + 8] for row in range(rows_of(segment))]


def contents_of(segment: Path) -> dict:
    """What the scores beside a segment belong to."""
    found = json.loads((segment.parent / "manifest.json").read_text())
    del found["format"]
    return found


def plain_nll(model, example: dict) -> np.ndarray:
    """Losses of a row's labels from the whole logits, each document by itself, in float64."""
    found, start = [], 0
    for length in example.get("seq_lengths") or [len(example["input_ids"])]:
        ids = torch.tensor([example["input_ids"][start : start + length]])
        labels = example["labels"][start : start + length]
        logp = model(ids).logits[0].log_softmax(-1)
        found += [-logp[place - 1, labels[place]].item() for place in range(1, length) if labels[place] != -100]
        start += length
    return np.array(found)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (demonstrations(), {}),
        (demonstrations(), {"pad_to_multiple_of": 8}),
        (demonstrations(), {"padding_free": True, "max_length": None}),
        (documents(), {"packing": True, "packing_strategy": "bfd"}),
        (documents(), {"packing": True, "packing_strategy": "wrapped"}),
    ],
    ids=["padded", "multiple-of-8", "padding-free", "bfd", "wrapped"],
)
def test_cached_scores_are_the_references(prepared, reference_model_path, rows, settings):
    made = prepared(rows, **settings)
    cache = made.cache()
    oracle = AutoModelForCausalLM.from_pretrained(reference_model_path, dtype=torch.float64)
    for example in made.rows:
        np.testing.assert_allclose(cache.scores(example_key(example)), plain_nll(oracle, example), rtol=1e-3, atol=1e-5)
    online, collator = load_reference(made.config, CPU), pickle.loads(pickle.dumps(WithScores(made.collator, cache)))
    for start in range(0, len(made.rows), 3):
        batch = collator([made.rows[index] for index in range(start, min(start + 3, len(made.rows)))])
        bits = batch.pop("reference_nll")
        # What DeepSpeed casts are floating numbers.
        assert bits.dtype == torch.int16 and bits.shape == batch["labels"].shape
        cached = bits.view(torch.float16)
        assert ((cached != 0) <= (batch["labels"] != -100)).all()
        torch.testing.assert_close(cached, reference_nll(online, batch), rtol=2e-3, atol=1e-5)


def test_the_reference_computes_in_the_precision_of_the_training(prepared):
    made = prepared(documents(3), bf16=True)
    cache = made.cache()
    assert cache.contents["autocast"] == "torch.bfloat16"
    assert prepared(documents(3)).cache().contents["autocast"] is None
    batch = WithScores(made.collator, cache)(list(made.rows))
    cached = batch.pop("reference_nll").view(torch.float16)
    online = load_reference(made.config, CPU)
    with autocast_of(made.config, CPU)():
        torch.testing.assert_close(cached, reference_nll(online, batch), rtol=0.02, atol=0.02)
    assert not torch.allclose(cached, reference_nll(online, batch), rtol=1e-3, atol=1e-5)


def test_nothing_of_the_reference_is_left_once_all_is_scored(prepared, monkeypatch):
    parts = []

    def load(*arguments):
        model = load_reference(*arguments)
        parts.extend(weakref.ref(part) for part in (model, *model.modules(), *model.parameters()))
        return model

    monkeypatch.setattr(reference_scores, "load_reference", load)
    cache = prepared(documents()).cache()
    assert len(cache) == 8 and len(parts) > 20
    assert [part for part in parts if part() is not None] == []


def test_rows_with_few_or_no_labels(prepared):
    made = prepared(demonstrations())
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, -100]},
        {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]},
        {"input_ids": [5], "labels": [5]},
        {"input_ids": [9, 10], "labels": [9, 10]},
        {"input_ids": [9, 10], "labels": [9, 10]},
    ]
    made.rows = Dataset.from_list(rows)
    cache = made.cache()
    # A row that is there twice is scored once.
    assert len(cache) == 4 and cache.tokens == 2
    batch = WithScores(made.collator, cache)(rows)
    assert (batch["reference_nll"] != 0).nonzero().tolist() == [[0, 2], [3, 1], [4, 1]]
    # None of the labels of these is scored.
    assert WithScores(made.collator, cache)(rows[1:3])["reference_nll"].abs().sum() == 0
    made.rows = Dataset.from_list([{"input_ids": [number], "labels": [number]} for number in (3, 4)])
    assert len(made.cache()) == 6
    with pytest.raises(UserError, match="is not in"):
        WithScores(made.collator, cache)([{"input_ids": [9, 10], "labels": [-100, 10]}])


def test_the_key_is_of_ids_labels_and_documents():
    ids = [1, 2, 3, 4]
    keys = [
        row_key(ids),
        row_key([1, 2, 3, 5]),
        row_key(ids, [-100, 2, 3, 4]),
        row_key(ids, ids, [4]),
        row_key(ids, ids, [2, 2]),
        row_key(ids, ids, [3, 1]),
    ]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {8}
    assert row_key(np.array(ids), np.array(ids)) == keys[0]


def test_the_command_fills_what_the_training_finds(recipe, tmp_path, capsys):
    filling = recipe(output_dir=str(tmp_path / "filling"), reference_cache_dir=str(tmp_path / "own"))
    runner.run(filling, [])
    assert cli.main(["score-reference", recipe()]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    [segment] = segments(tmp_path)
    written = segment.stat().st_mtime_ns
    rows = ScoreCache(segment.parent.parent, contents_of(segment), REFERENCE_NLL)
    assert f"{len(rows)} rows, {rows.tokens:,} tokens, {rows.size:,} bytes" in said and str(segment.parent) in said
    assert rows.size / rows.tokens <= 2.1
    runner.run(recipe(), [])
    assert cli.main(["score-reference", recipe()]) == 0
    assert segments(tmp_path) == [segment] and segment.stat().st_mtime_ns == written
    # The scoring leaves the random numbers alone.
    assert weights(tmp_path / "filling") == weights(tmp_path / "out")
    assert [
        path.name for path in segment.parent.iterdir() if path not in (segment, segment.parent / "manifest.json")
    ] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reference_mode", "online"], "--reference_mode on the command line ({recipe}): online keeps no scores"),
        (
            ["--selection", "random"],
            "--selection on the command line ({recipe}): random needs no frozen model",
        ),
        (
            ["--reference_model_name_or_path", "smollm2-135m"],
            "--reference_model_name_or_path on the command line ({recipe}): smollm2-135m has another",
        ),
    ],
)
def test_recipes_without_scores_are_refused(recipe, tmp_path, capsys, words, said):
    path = recipe()
    assert cli.main(["score-reference", path, *words]) == 2
    assert said.format(recipe=path) in capsys.readouterr().err
    assert not (tmp_path / "scores").exists() and not (tmp_path / "out").exists()
    assert cli.main(["score-reference", "quickstart"]) == 2
    assert "allowed here: rho1" in capsys.readouterr().err


def test_the_command_leaves_the_output_folder_alone(recipe, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    # Without a network, a repository on the Hub would be an error.
    words = ["--push_to_hub", "true", "--resume_from_checkpoint", "true", "--attn_implementation", "eager"]
    assert cli.main(["score-reference", recipe(), *words]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert len(segments(tmp_path)) == 1
    assert "model_init_kwargs" not in caplog.text


def test_only_new_rows_are_scored(prepared, tmp_path):
    assert len(prepared(documents(3)).cache()) == 3
    cache = prepared(documents(8)).cache()
    assert len(cache) == 8
    assert [rows_of(path) for path in segments(tmp_path)] == [3, 5]


def test_damaged_segments_are_set_aside_and_scored_anew(prepared, tmp_path, caplog):
    whole = prepared(documents(8)).cache()
    scores = [whole.scores(example_key(row)).copy() for row in prepared(documents(8)).rows]
    for path in segments(tmp_path):
        path.unlink()
    for count in (2, 4, 6, 8):
        prepared(documents(count)).cache()
    first, second, third, fourth = segments(tmp_path)
    first.write_bytes(first.read_bytes()[:-2])
    second.write_bytes(b"")
    third.write_bytes(third.read_bytes()[:50] + b"?" + third.read_bytes()[51:])
    made = prepared(documents(8))
    cache = made.cache()
    for row, old in zip(made.rows, scores, strict=True):
        assert np.array_equal(cache.scores(example_key(row)), old)
    assert caplog.text.count("truncated or damaged") == 3
    assert len(segments(tmp_path)) == 2 and fourth in segments(tmp_path)
    assert sorted(path.name for path in cache.folder.glob("*.damaged")) == sorted(
        path.with_suffix(".damaged").name for path in (first, second, third)
    )
    (cache.folder / "manifest.json").write_text("{")
    assert len(made.cache()) == 8


def test_scores_of_another_reference_are_neither_used_nor_lost(prepared, tmp_path, caplog):
    mine = prepared(documents()).cache()
    before = segments(tmp_path)
    other = prepared(documents(), reference=save_tiny_model(tmp_path / "other", seed=2)).cache()
    assert "holds scores, but none for this run (other: weights)" in caplog.text
    assert other.folder != mine.folder and set(before) < set(segments(tmp_path))
    # Moved by hand into the other's place: the names of the folders say what they are.
    os.replace(other.folder / "manifest.json", mine.folder / "manifest.json")
    with pytest.raises(UserError, match=r"manifest.json is of other scores than its folder's name says \(weights\)"):
        prepared(documents()).cache()


def test_scores_that_the_reference_does_not_give_are_refused(prepared, tmp_path):
    made = prepared(documents())
    cache = made.cache()
    keys = [example_key(row) for row in made.rows]
    shifted = [np.roll(cache.scores(key), 1) for key in keys]
    for path in segments(tmp_path):
        path.unlink()
    cache.write(keys, shifted)
    with pytest.raises(UserError, match=r"does not hold this reference's losses: those of row 0 .* nats apart"):
        made.cache()
    made.config.reference_check_rows = 0
    assert len(made.cache()) == 8


def test_scores_that_are_no_numbers_are_refused(prepared, tmp_path):
    made = prepared(documents(), reference_check_rows=0)
    made.cache()
    [segment] = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    content[-2:] = np.float16(np.inf).tobytes()
    segment.write_bytes(content)
    cache = made.cache()
    with pytest.raises(UserError, match=f"{segment.parent} has losses that are no numbers"):
        WithScores(made.collator, cache)(list(made.rows))


def test_scores_that_have_changed_are_refused(prepared, tmp_path):
    made = prepared(documents(), reference_check_rows=0)
    made.cache()
    [segment] = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    content[-1] ^= 0x01
    segment.write_bytes(content)
    with pytest.raises(UserError, match=rf"{segment} does not hold the losses that were written.*Remove the file"):
        WithScores(made.collator, made.cache())(list(made.rows))
    segment.unlink()
    WithScores(made.collator, made.cache())(list(made.rows))
    # Of a former version the name says nothing of the scores.
    [segment] = segments(tmp_path)
    former = segment.rename(segment.with_name(f"{segment.name.partition('-')[0]}.nll"))
    WithScores(made.collator, made.cache())(list(made.rows))
    assert segments(tmp_path) == [former]


def test_a_reference_that_gives_no_number_is_refused(prepared, tmp_path):
    broken = Path(save_tiny_model(tmp_path / "broken"))
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        # Numbers all, of which the logits are none; weights that are none are refused as they are loaded.
        model.model.norm.weight[:] = 3e38
    model.save_pretrained(broken)
    with pytest.raises(UserError, match="gives row 0 of the prepared data a loss of nan"):
        prepared(documents(1), reference=str(broken)).cache()
    assert not segments(tmp_path)


def test_no_model_is_loaded_for_a_filled_cache(prepared):
    made = prepared(documents(), reference_check_rows=0)
    made.cache()

    def load():
        raise AssertionError("loaded")

    table = scoring.row_table(made.rows, REFERENCE_NLL)
    cache = made.cache()
    asked = scoring.Scorer(REFERENCE_NLL, load, reference_nll, CPU, autocast_of(made.config, CPU))
    assert scoring.fill(cache, made.rows, made.collator, asked, table, batch_size=2) == 0
    scoring.verify(cache, made.rows, made.collator, asked, table, rows=0)
    with pytest.raises(UserError, match=r"does not take .* more bytes \(too little room\)"):
        cache.check_room(1, 2**60)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
MAIN = "import sys; from hpt_trl.cli import main; sys.exit(main(sys.argv[1:]))"


def child(code: str, *words: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE, text=True)


def test_a_disk_that_fills_is_named_and_nothing_is_lost(recipe, tmp_path):
    few, all_of_it = '{"size": 60, "test_size": 20}', '{"size": 600, "test_size": 20}'
    words = ["score-reference", recipe(), "--dataset_options"]
    assert cli.main([*words, few]) == 0
    process = child(LIMITED + MAIN, *words, all_of_it)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in errors, errors
    assert (
        f"reference_cache_dir: {segments(tmp_path)[0].parent} does not take" in errors and "(File too large)" in errors
    )
    assert len(segments(tmp_path)) == 1 and not list((tmp_path / "scores").glob("*/*.partial"))
    assert cli.main([*words, all_of_it]) == 0
    assert len(segments(tmp_path)) == 2


def test_a_killed_scoring_goes_on_where_it_stopped(recipe, tmp_path):
    small = "from hpt_trl.token_scores import scoring; scoring._SEGMENT_TOKENS = 1000; "
    path = recipe(dataset_options={"size": 1500, "test_size": 20})
    process = child(small + MAIN, "score-reference", path)
    deadline = time.monotonic() + 100
    while len(segments(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = segments(tmp_path)
    contents = contents_of(kept[0])
    scored = len(ScoreCache(tmp_path / "scores", contents, REFERENCE_NLL))
    assert scored > 0
    assert cli.main(["score-reference", path]) == 0
    assert segments(tmp_path)[: len(kept)] == kept
    sizes = [rows_of(path) for path in segments(tmp_path)]
    cache = ScoreCache(tmp_path / "scores", contents, REFERENCE_NLL)
    # No row was scored twice, and some were left to do.
    assert sum(sizes) == len(cache) > scored


# Of two caches the second is damaged; what is said of it goes to FOLDER/<rank>.txt.
IN_EACH_PROCESS = """
import sys
from pathlib import Path
from accelerate import PartialState
from hpt_trl import UserError, cli
from hpt_trl.runs.score_reference import score_reference
recipe, folder = sys.argv[1:]
assert cli.main(["score-reference", recipe]) == 0
try:
    score_reference(recipe, ["--reference_cache_dir", f"{folder}/damaged"])
except UserError as error:
    Path(folder, f"{PartialState().process_index}.txt").write_text(str(error))
"""


def test_processes_share_the_rows_and_learn_of_each_others_errors(recipe, tmp_path):
    assert cli.main(["score-reference", recipe(reference_cache_dir=str(tmp_path / "one"))]) == 0
    [segment] = shutil.copytree(tmp_path / "one", tmp_path / "damaged").glob("*/*.nll")
    content = segment.read_bytes()
    index = 40 + 12 * rows_of(segment)
    segment.write_bytes(content[:index] + bytes(len(content) - index))
    (tmp_path / "each.py").write_text(IN_EACH_PROCESS)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs/cpu.yaml"), "--main_process_port", "0", str(tmp_path / "each.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, recipe(), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bytes a token") == 1
    for rank in (0, 1):
        assert "does not hold this reference's losses" in (tmp_path / f"{rank}.txt").read_text()
    two = segments(tmp_path)
    sizes = [rows_of(path) for path in two]
    contents = contents_of(two[0])
    cache = ScoreCache(tmp_path / "scores", contents, REFERENCE_NLL)
    assert len(sizes) == 2 and sum(sizes) == len(cache) and abs(sizes[0] - sizes[1]) <= 4
    one = ScoreCache(tmp_path / "one", contents, REFERENCE_NLL)
    for key in itertools.islice(keys_of(two[0]), 20):
        np.testing.assert_allclose(one.scores(key), cache.scores(key), rtol=2e-3)


def test_help_names_the_command():
    assert "usage: hpt-trl score-reference RECIPE [--key value ...]" in hpt_trl("score-reference", "--help").stdout
