"""A recipe of `stage: evaluate`: completions drawn or found in the output folder, scored, measured, and reported.

Completions depend on the model, the prompts and the decoding; these lie beside them. Given again with the same ones, a
stopped evaluation goes on, and a finished one is only scored anew, e.g. by other rewards or for another k.
"""

import json
import shlex
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed
from trl import get_quantization_config
from trl.trainer.utils import create_model_from_path

from hpt_trl.evaluation.conditions import prompts_digest, rows_digest
from hpt_trl.evaluation.generating import Item, Sample
from hpt_trl.evaluation.lines import measure_lines
from hpt_trl.evaluation.measuring import PERPLEXITY, WIN_RATE, Task, measure
from hpt_trl.evaluation.perplexity import LONGEST
from hpt_trl.evaluation.samples import SAMPLES_FILE, SCORED_FILE, SampleStore
from hpt_trl.evaluation.scoring import Judge
from hpt_trl.files import valid_json, write_atomically
from hpt_trl.methods.environments import environment_conditions
from hpt_trl.methods.evaluate.stage import measures_of
from hpt_trl.models.adapters import base_of
from hpt_trl.models.digests import adapter_digest, model_digest
from hpt_trl.models.loading import check_architecture, load_config, parts_of, positions_of
from hpt_trl.models.padding_free.trunks import take_packed_rows
from hpt_trl.models.whole_models import load_whole, whole_model
from hpt_trl.reading import duration, write_results
from hpt_trl.run_files import RESULTS_FILE
from hpt_trl.runs.acting import rows_placed
from hpt_trl.runs.checkpoints import full_disk_explained
from hpt_trl.runs.locking import only_run
from hpt_trl.runs.output_folder import check_output_folder, open_output_folder, run_files, write_recipe
from hpt_trl.runs.prepared import Prepared
from hpt_trl.runs.record import hardware, short_name, versions
from hpt_trl.runs.replacing import put_back_on_failure
from hpt_trl.runs.trackers.tracking import Tracking
from hpt_trl.settings.masking import masked_command
from hpt_trl.terminal import flow

# Completions that stand in results.json, for reading.
_KEPT = 8


def run_evaluation(prepared: Prepared, started: float, command: list[str]) -> None:
    """Runs a prepared evaluation; every process calls it.

    Raises:
        UserError: the output folder holds something else, or a reward failed.
    """
    recipe, state = prepared.recipe, PartialState()
    task = task_of(prepared)
    store = SampleStore(recipe.config.output_dir)
    with full_disk_explained(recipe.config.output_dir), rows_placed(prepared.splits), ExitStack() as held:
        # What is drawn stays; until then a former evaluation is put back where this one fails.
        with ExitStack() as opening:
            if state.is_main_process:
                held.enter_context(only_run(store.folder, command))
                check_output_folder(recipe)
                opening.enter_context(put_back_on_failure(store.folder, run_files))
                _open(prepared, store)
            state.wait_for_everyone()
            there = broadcast_object_list([len(store.read()) if state.is_main_process else 0])[0]
            left = task.answers and there < len(task.rows) * task.decoding.n
            set_seed(recipe.config.seed)
            accelerator = Accelerator(mixed_precision=_precision(recipe.config), cpu=recipe.config.use_cpu)
            engine = _vllm_engine(prepared, task) if recipe.config.use_vllm and left else None
            needed = (left and engine is None) or PERPLEXITY in task.measures
            model = load_model(prepared, accelerator.device) if needed else None
        drawing = time.perf_counter()
        result, lines = measure(task, model, store, engine=engine, accelerator=accelerator)
        if state.is_main_process:
            _write(prepared, result, lines, command, started, time.perf_counter() - drawing)
    state.wait_for_everyone()


def task_of(prepared: Prepared) -> Task:
    """What a prepared evaluation measures."""
    recipe, config = prepared.recipe, prepared.recipe.config
    measures = measures_of(recipe)
    judge = None
    if prepared.rewards:
        judge = Judge(prepared.rewards, prepared.reward_weights, prepared.success, prepared.success_threshold)
    limit = positions_of(prepared.model_config)
    return Task(
        rows=prepared.splits.train,
        layout=prepared.splits.layout,
        encoder=prepared.encoder,
        measures=measures,
        judge=judge,
        decoding=config.decoding,
        k=config.k,
        batch_size=config.per_device_eval_batch_size,
        against=config.against if WIN_RATE in measures else None,
        longest=config.max_length or min(limit or LONGEST, LONGEST),
        demonstration_column=prepared.splits.demonstration_column,
        end_ids=prepared.end_ids or prepared.encoder.end_ids,
        acting=prepared.acting,
    )


def load_model(prepared: Prepared, device: torch.device) -> torch.nn.Module:
    """The model of an evaluation, of an adapter with its base, in evaluation mode."""
    recipe, arguments = prepared.recipe, prepared.recipe.model_args
    name = str(prepared.model)
    quantization = get_quantization_config(arguments)
    settings: dict[str, Any] = {
        "revision": arguments.model_revision,
        "trust_remote_code": recipe.config.trust_remote_code,
        "attn_implementation": arguments.attn_implementation,
        "dtype": arguments.dtype,
        **(recipe.config.model_init_kwargs or {}),
    }
    if quantization is not None:
        settings["quantization_config"] = quantization
    return load_named(name, device, **settings)


def load_named(name: str, device: torch.device, **settings: Any) -> torch.nn.Module:
    """A model by its name, of an adapter with its base, in evaluation mode.

    Args:
        settings: of `from_pretrained`.
    """
    parts = parts_of(name, revision=settings.pop("revision", None))
    trusted = settings.get("trust_remote_code", False)
    check_architecture(parts.base, load_config(parts.base, revision=parts.revision, trust_remote_code=trusted))
    settings |= {"device_map": {"": device}, "revision": parts.revision}
    model: Any = load_whole(create_model_from_path, parts.base, adapter=parts.adapter, **settings)
    # Of rows whose likelihood is measured no padding is computed.
    take_packed_rows(base_of(model).base_model)
    return model.eval()


def write_scored(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Leaves scored completions for reading; nothing where none were drawn."""
    if lines:
        text = "".join(json.dumps(valid_json(line), ensure_ascii=False) + "\n" for line in lines)
        write_atomically(folder / SCORED_FILE, text)


def _precision(config: Any) -> str:
    return "bf16" if config.bf16 else "fp16" if config.fp16 else "no"


def _open(prepared: Prepared, store: SampleStore) -> None:
    """Makes the output folder ready: for a new evaluation, or for one that goes on."""
    recipe = prepared.recipe
    found = None if recipe.arguments.overwrite else store.conditions()
    wanted = valid_json(_conditions(prepared))
    if found is None:
        open_output_folder(recipe, resuming=False)
        store.begin(wanted)
        return
    changed = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if changed:
        sides = [f"{name} {_short(found.get(name))} there, {_short(wanted.get(name))} here" for name in changed]
        raise recipe.error(
            "output_dir",
            f"{store.folder} holds completions of another evaluation: {'; '.join(sides)}. Name another "
            "`--output_dir`, or start anew with `--overwrite true`.",
        )
    there = len(store.take_up())
    # A former result, and the recipe that it is of, stay until there is a new one.
    if not (store.folder / RESULTS_FILE).exists():
        open_output_folder(recipe, resuming=True)
    print(f"{store.folder / SAMPLES_FILE}: {there:,} completions are there and are not drawn again.", flush=True)


def _conditions(prepared: Prepared) -> dict[str, Any]:
    """What completions depend on."""
    recipe, config, name = prepared.recipe, prepared.recipe.config, str(prepared.model)
    arguments = recipe.model_args
    parts = parts_of(name, revision=arguments.model_revision)
    adapter = "" if parts.adapter is None else f" with adapter {adapter_digest(parts.adapter)}"
    return {
        "model": name,
        "weights": model_digest(parts.base, revision=parts.revision) + adapter,
        "model_init_kwargs": config.model_init_kwargs,
        "attn_implementation": arguments.attn_implementation,
        "end_ids": sorted(prepared.end_ids or []),
        **answered_conditions(prepared),
        "batch_size": config.per_device_eval_batch_size,
        "precision": f"{arguments.dtype}, {_precision(config)}",
        "quantization": _quantization(arguments),
        "engine": "vllm" if config.use_vllm else "transformers",
        "vllm_max_model_length": config.vllm_max_model_length if config.use_vllm else None,
    }


def answered_conditions(prepared: Prepared) -> dict[str, Any]:
    """What completions depend on, whatever the model: rows, prompts and decoding."""
    rows, is_text = prepared.splits.train, prepared.splits.layout == "documents"
    return {
        "rows": rows_digest(rows["text" if is_text else "prompt"]),
        "prompts": None if is_text else prompts_digest(rows, prepared.encoder),
        **asdict(prepared.recipe.config.decoding),
        **environment_conditions(prepared.recipe, prepared.acting),
    }


def _quantization(arguments: Any) -> str | None:
    if arguments.load_in_4bit:
        return f"4 bits, {arguments.bnb_4bit_quant_type}{', nested' if arguments.use_bnb_nested_quant else ''}"
    return "8 bits" if arguments.load_in_8bit else None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _vllm_engine(prepared: Prepared, task: Task) -> Any:
    from hpt_trl.evaluation.vllm_engine import draw

    config, arguments = prepared.recipe.config, prepared.recipe.model_args
    parts = parts_of(str(prepared.model), revision=arguments.model_revision)
    settings = {
        "dtype": arguments.dtype or "auto",
        "revision": parts.revision,
        "trust_remote_code": config.trust_remote_code,
        "gpu_memory_utilization": config.vllm_gpu_memory_utilization,
        "tensor_parallel_size": config.vllm_tensor_parallel_size,
        "max_model_len": config.vllm_max_model_length,
        # Compiling takes longer than the short runs that a CPU is for.
        "enforce_eager": config.use_cpu,
        **({"quantization": "bitsandbytes"} if arguments.load_in_4bit else {}),
    }

    def engine(done: Collection[Item]) -> Iterator[list[Sample]]:
        base = whole_model(parts.base, adapter=parts.adapter)
        return draw(base, task, settings, adapter=parts.adapter, done=done)

    return engine


def _write(
    prepared: Prepared,
    result: dict[str, Any],
    lines: list[dict[str, Any]],
    command: list[str],
    started: float,
    measured: float,
) -> None:
    recipe = prepared.recipe
    folder = Path(recipe.config.output_dir)
    write_scored(folder, lines)
    tokens = result.pop("tokens", 0)
    shown = [line for line in lines if line["generation"] == 0][:_KEPT]
    seconds = time.perf_counter() - started
    results = {
        "recipe": short_name(recipe.path),
        "stage": recipe.stage.name,
        "model": prepared.model,
        "data": prepared.splits.source,
        "measures": result,
        "completions": shown,
        "wall_time_s": {"total": seconds, "evaluation": measured},
        "tokens": {"evaluation": tokens},
        "versions": versions(),
        "hardware": hardware(PartialState().device, PartialState().num_processes, None),
        "command": masked_command(shlex.join(command)),
    }
    write_recipe(recipe)
    write_results(folder, results)
    tracking = Tracking(recipe, prepared)
    with tracking.running():
        tracking.measured(results, lines)
    print()
    said = [*measure_lines(result), f"Measured in {duration(seconds)}", f"Results: {folder / RESULTS_FILE}"]
    print(flow([*said, *([f"Samples: {folder / SCORED_FILE}"] if lines else [])]))
