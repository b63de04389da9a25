"""One evaluation: completions drawn or read from disk, scored, and what is measured of them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import TrainerState

from hpt_trl.data.layout_names import Layout
from hpt_trl.data.messages import as_text
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.rendering import Encoded, Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.trajectories import FOLDER, IMAGES, write_lines
from hpt_trl.environments.trajectories import line_of as trajectory_of
from hpt_trl.errors import UserError
from hpt_trl.evaluation.acted import act
from hpt_trl.evaluation.generating import Decoding, Item, Sample, cut_at_stop, generate
from hpt_trl.evaluation.measures import majority_at_k, pass_at_k, vote_groups
from hpt_trl.evaluation.perplexity import measure_perplexity, scored_bytes
from hpt_trl.evaluation.samples import SampleStore
from hpt_trl.evaluation.scoring import Judge, Scored, score
from hpt_trl.evaluation.summary import line_of, summarised, with_interval
from hpt_trl.evaluation.win_rate import rewards_of_demonstrations, rewards_of_evaluation, win_rate
from hpt_trl.rewards.answer_texts import normalised

PASS, AVERAGE, MAJORITY, PERPLEXITY, WIN_RATE = "pass@k", "avg@k", "maj@k", "perplexity", "win_rate"
MEASURES = (PASS, AVERAGE, MAJORITY, PERPLEXITY, WIN_RATE)
# Measures of completions that rewards score.
SCORED = (PASS, AVERAGE, MAJORITY, WIN_RATE)
# What `against` calls the rows' own answers.
DEMONSTRATIONS = "demonstrations"
# Rollouts in an environment that are kept with their images, the first of each of so many rows.
KEPT_ROLLOUTS = 16
# Completions that rewards see at once.
_AT_ONCE = 256

# Draws the completions that are not there yet: of a process its own, in batches.
Engine = Callable[[Collection[Item]], Iterator[list[Sample]]]


@dataclass(frozen=True)
class Task:
    """What is measured of a model.

    Attributes:
        rows: Held-out rows, with the columns that the rewards read.
        layout: Theirs.
        encoder: As prompts and answers are encoded.
        measures: Some of `MEASURES`.
        judge: What completions are scored by; None where nothing is.
        k: Of `pass@k` and `maj@k`.
        decoding: How completions are drawn.
        batch_size: Completions or texts at a time in each process.
        against: What `win_rate` compares with.
        longest: Tokens that `perplexity` reads at once.
        demonstration_column: The rows' own answers.
        end_ids: Token ids at which the model stops.
        acting: Begins rollouts in an environment; None where rows are answered in one turn.
    """

    rows: Dataset
    layout: Layout
    encoder: Encoder
    measures: Sequence[str]
    judge: Judge | None
    decoding: Decoding
    k: Sequence[int] = (1,)
    batch_size: int = 8
    against: str | None = None
    longest: int = 2048
    demonstration_column: str = "completion"
    end_ids: Sequence[int] = ()
    acting: Acting | None = None

    @property
    def answers(self) -> bool:
        """Whether completions are drawn."""
        return any(measure in SCORED for measure in self.measures)


def measure(
    task: Task,
    model: torch.nn.Module | None,
    store: SampleStore,
    *,
    engine: Engine | None = None,
    accelerator: Accelerator | None = None,
    trainer_state: TrainerState | None = None,
    description: str = "Evaluation",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measures a model; all processes must call it together.

    Completions that lie in the store are not drawn again.

    Args:
        model: Also as wrapped by `accelerator`; None where nothing is left for it to do.
        store: Where the completions lie, begun by one process.
        engine: Draws completions in the model's stead.
        trainer_state: The trainer's, for the rewards.

    Returns:
        The measures, each a number with its 95 % interval as `<measure>_interval`; and the scored completions as lines
        for reading, sorted by row.
    """
    result: dict[str, Any] = {"rows": len(task.rows)}
    lines: list[dict[str, Any]] = []
    if task.answers:
        scored = _answer(task, model, store, engine, accelerator, trainer_state, description)
        result |= _of_completions(task, scored, (store.conditions() or {}).get("prompts"))
        assert task.judge is not None
        names = task.judge.names
        lines = [line_of(one, task.rows[one.sample.index], names) for one in scored]
        if task.acting is not None and PartialState().is_main_process:
            keep_rollouts(store.folder, scored, task.rows, names, mode="eval")
    if PERPLEXITY in task.measures:
        assert model is not None
        result |= _perplexity(task, model, accelerator, description)
    return result, lines


def _answer(
    task: Task,
    model: torch.nn.Module | None,
    store: SampleStore,
    engine: Engine | None,
    accelerator: Accelerator | None,
    trainer_state: TrainerState | None,
    description: str,
) -> list[Scored]:
    """The completions of all rows, scored; the same list in every process."""
    state = PartialState()
    there: list[Sample] = broadcast_object_list([store.read() if state.is_main_process else []])[0]
    done, new = [(sample.index, sample.generation) for sample in there], list[Sample]()
    if len(done) < len(task.rows) * task.decoding.n:
        common: dict[str, Any] = {"batch_size": task.batch_size, "accelerator": accelerator, "description": description}
        if engine is not None:
            batches = engine(done)
        elif task.acting is not None:
            assert model is not None
            images = store.folder / FOLDER / IMAGES
            batches = act(
                model, task.acting, task.rows, task.decoding, done=done, images=images, kept=KEPT_ROLLOUTS, **common
            )
        else:
            assert model is not None
            batches = generate(model, task.encoder, task.rows, task.decoding, done=done, **common)
        for batch in batches:
            store.add(batch, state.process_index)
            new += batch
    # Not by the files: another machine may have written to a disk of its own. A batch is drawn whole, also where a part
    # of it is there.
    known = {(sample.index, sample.generation): sample for sample in [*gather_object(new), *there]}
    samples = [known[item] for item in sorted(known)]
    if state.is_main_process:
        store.write(samples, {(sample.index, sample.generation): _readable(sample, task) for sample in samples})
    return _score(task, samples, trainer_state)


def _score(task: Task, samples: list[Sample], trainer_state: TrainerState | None) -> list[Scored]:
    assert task.judge is not None
    state = PartialState()
    own = [samples[start : start + _AT_ONCE] for start in range(0, len(samples), _AT_ONCE)]
    scored: list[Scored] = []
    for batch in own[state.process_index :: state.num_processes]:
        scored += score(
            batch, task.rows, task.encoder, task.judge, trainer_state=trainer_state, stop=task.decoding.stop
        )
    scored = gather_object(scored)
    return sorted(scored, key=lambda one: (one.sample.index, one.sample.generation))


def _readable(sample: Sample, task: Task) -> dict[str, Any]:
    row = task.rows[sample.index]
    if sample.played is not None:
        return {"row": row.get(ROW), "completion": as_text(sample.played["completion"])}
    text = task.encoder.tokenizer.decode(sample.ids, skip_special_tokens=True)
    return {"row": row.get(ROW), "completion": cut_at_stop(text, task.decoding.stop)}


def _of_completions(task: Task, scored: list[Scored], prompts: str | None) -> dict[str, Any]:
    """What is measured of scored completions, n of each row."""
    assert task.judge is not None
    n, judge = task.decoding.n, task.judge
    groups = [scored[start : start + n] for start in range(0, len(scored), n)]
    solved = [[one.solved for one in group] for group in groups]
    result: dict[str, Any] = {"n": n}
    if PASS in task.measures:
        for k in task.k:
            values = [pass_at_k(n, sum(row), k) for row in solved]
            result |= with_interval(f"pass@{k}", values, max(n // k, 1))
    if AVERAGE in task.measures:
        result |= with_interval(f"avg@{n}", [fmean(row) for row in solved], n)
    if MAJORITY in task.measures:
        votes = [_votes(group) for group in groups]
        for k in task.k if max(task.k) > 1 else [n]:
            values = [majority_at_k(vote, row, k) for vote, row in zip(votes, solved, strict=True)]
            result |= with_interval(f"maj@{k}", values, max(n // k, 1))
        result["without_answer"] = fmean(group is None for vote in votes for group in vote)
    if WIN_RATE in task.measures:
        result |= win_rate([[one.reward for one in group] for group in groups], _others(task, prompts))
        result["against"] = task.against
    return result | summarised(scored, judge)


def _votes(group: list[Scored]) -> list[int | None]:
    played = [one.sample.played for one in group]
    if played[0] is None:
        return vote_groups([one.text for one in group])
    answers = [None if one is None else one["facts"].get("final_answer") for one in played]
    distinct = list(dict.fromkeys(normalised(answer) for answer in answers if answer is not None))
    return [None if answer is None else distinct.index(normalised(answer)) for answer in answers]


def _others(task: Task, prompts: str | None) -> list[list[float | None]]:
    """What `win_rate` compares with."""
    assert task.judge is not None
    rows, encoder, judge = task.rows, task.encoder, task.judge
    if task.against == DEMONSTRATIONS:
        return rewards_of_demonstrations(rows, task.demonstration_column, encoder, judge)
    return rewards_of_evaluation(Path(str(task.against)), rows, encoder, judge, prompts)


def _perplexity(
    task: Task, model: torch.nn.Module, accelerator: Accelerator | None, description: str
) -> dict[str, Any]:
    encoder, sizes = task.encoder, None
    if task.layout == "documents":
        texts = task.rows["text"]
        encoded: list[Encoded] = [encoder.document(text) for text in texts]
        sizes = [scored_bytes(text, row, encoder.tokenizer) for text, row in zip(texts, encoded, strict=True)]
    else:
        encoded = [encoder.answered(row, task.demonstration_column) for row in task.rows]
    if not any(sum(row.trained[1:]) for row in encoded):
        raise UserError("perplexity: no row has a token that is predicted.")
    pad = encoder.tokenizer.pad_token_id
    return measure_perplexity(
        model,
        encoded,
        sizes,
        longest=task.longest,
        batch_size=task.batch_size,
        pad_token_id=0 if pad is None else pad,
        accelerator=accelerator,
        description=f"{description}: perplexity",
    )


def keep_rollouts(
    folder: Path, scored: Sequence[Scored], rows: Dataset, names: Sequence[str], *, mode: str, step: int | None = None
) -> None:
    """Leaves the first rollouts in an environment for reading; nothing where there were none.

    Args:
        folder: output folder.
        names: of the rewards.
        mode: what the rollouts are of, also the name of their file.
    """
    kept = [one for one in scored if one.sample.index < KEPT_ROLLOUTS and one.sample.generation == 0]
    lines = [
        trajectory_of(
            one.sample.played,
            rows[one.sample.index],
            dict(zip(names, one.values, strict=True)),
            id=f"{mode}-{rows[one.sample.index].get(ROW, one.sample.index)}",
            mode=mode,
            step=step,
        )
        for one in kept
        if one.sample.played is not None
    ]
    write_lines(folder, mode, lines)
