"""An adapter merged into its base model, and the proof that the merged model is the one that was trained."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.digests import note_digests
from hpt_trl.errors import UserError
from hpt_trl.models.folders import (
    HEADS_FOLDER,
    VALUE_TASK,
    check_merge,
    has_processor,
)
from hpt_trl.models.future_heads.shipped import announce_nothing, find_shipped_heads, keep_heads
from hpt_trl.models.hub_parts import found_adapter
from hpt_trl.models.readable import adapter_config, readable
from hpt_trl.models.whole_files import refuse_damaged_model
from hpt_trl.models.whole_models import load_whole
from hpt_trl.placing import clear_left, written_aside

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Relative difference of logits by rounding alone: of sums formed in another order in float32, and of a loaded copy.
_ROUNDING = 1e-3
_PROBE_SHAPE = (2, 24)


def merge_adapter(folder: str | Path, destination: str | Path, *, revision: str | None = None) -> None:
    """Merge a LoRA adapter into its base model and write the whole model with its tokenizer.

    Where the adapter changed the input or the output embeddings of a model that ties them, the merged model has both.
    The written model is loaded again and compared with base and adapter before it gets its name.

    Args:
        folder: holds the adapter of a language model, a reward model or a value model, as a run with `use_peft` writes
            it; or the Hub id of one.
        destination: new or empty folder; it is complete or not there.
        revision: of a Hub id.

    Raises:
        UserError: no adapter, a destination that is not empty, a base model that cannot be loaded, or a merged model
            that does not compute what base and adapter compute.
    """
    check_merge(str(folder), Path(destination))
    # What a link leads to is renamed, not the link.
    target = Path(destination).resolve()
    source = Path(found_adapter(str(folder), revision=revision))
    refuse_damaged_model(source)
    tokenizer, processor = _tokenizer_of(source)
    merged = load_merged(str(source), pad_token_id=tokenizer.pad_token_id, dtype="auto")
    clear_left(target)
    with written_aside(target) as partial:
        merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        _check_written(merged, partial, source)
        # A value head and heads for future tokens read the trunk's hidden states, which merging leaves as they are.
        for name in ("value_head", HEADS_FOLDER):
            if (source / name).is_dir():
                shutil.copytree(source / name, partial / name)
        _keep_shipped(source, merged, partial)
        note_digests(partial)
        try:
            os.replace(partial, target)
        except OSError:
            # Something may have been written there in the meantime, by another merge as well.
            check_merge(str(folder), target)
            raise


def _keep_shipped(source: Path, merged: "PreTrainedModel", folder: Path) -> None:
    """Put heads that the base model ships beside the merged model; they fit it as they fit base and adapter."""
    adapter = adapter_config(source)
    if adapter.task_type == "SEQ_CLS":
        announce_nothing(folder)
        return
    base = str(adapter.base_model_name_or_path)
    keep_heads(find_shipped_heads(base, merged.config, revision=adapter.revision), folder)


def load_merged(folder: str, *, pad_token_id: int, dtype: str, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Load the base model of an adapter with the adapter in its weights.

    Input and output embeddings are untied where the adapter made them differ.

    Args:
        pad_token_id: what the base model of a reward model's adapter pads with; its own config need not say.

    Raises:
        UserError: base or adapter is damaged or cannot be loaded, the adapter has no merged form, or the merged model
            does not compute what base and adapter compute.
    """
    import torch
    from peft import PeftModel, PeftType

    # Before the base, which may take minutes; what it holds is compared with what it comes to.
    refuse_damaged_model(folder)
    adapter = adapter_config(folder)
    if adapter.is_prompt_learning:
        raise UserError(
            f"{folder}: an adapter of the type {PeftType(adapter.peft_type).value} has no merged form; train LoRA."
        )
    model = _load_base(folder, adapter, pad_token_id, dtype, trust_remote_code)
    # One rounding for all of it: the sum of weight and adapter is formed in float32.
    stored, types = model.dtype, {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # A checkpoint that is itself quantized: the adapter goes into the weights that it stands for.
    if getattr(model.config, "quantization_config", None) is not None:
        model, types = model.dequantize(torch.float32), {}
        # Saving would write the weights in the form of that checkpoint.
        model._weight_conversions = None
    _fit_vocabulary(model.float(), folder)
    tied = _tied_weight(model)
    adapted = PeftModel.from_pretrained(model, folder).eval()
    probe = _probe(model.config, adapter)
    expected = _logits(adapted, probe)
    if tied is not None:
        _untie(adapted, tied)
    merged = adapted.merge_and_unload()
    if tied is not None:
        _settle_tie(merged, folder)
    difference = _difference(_logits(merged, probe), expected)
    if not difference <= _ROUNDING:
        raise UserError(
            f"{folder}: merged into its base model, the adapter would give another model: the logits differ by "
            f"{difference:.2g} of their size. Name base and adapter instead, or train an adapter of another kind "
            "(`lora_target_modules`, `lora_modules_to_save`)."
        )
    # `model.to` would round what is no weight as well, such as the frequencies of rotary position embeddings.
    for name, tensor in _with_copies(merged):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(types.get(name, stored))
    return merged


def _load_base(
    folder: str, adapter: "PeftConfig", pad_token_id: int, dtype: str, trust_remote_code: bool
) -> "PreTrainedModel":
    from transformers import AutoModel, AutoModelForSequenceClassification
    from trl.trainer.utils import create_model_from_path

    base = str(adapter.base_model_name_or_path)
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "revision": adapter.revision}
    try:
        if adapter.task_type == "SEQ_CLS":
            model = load_whole(AutoModelForSequenceClassification.from_pretrained, base, num_labels=1, **settings)
            model.config.get_text_config().pad_token_id = pad_token_id
            return model
        if adapter.task_type == VALUE_TASK:
            return load_whole(AutoModel.from_pretrained, base, **settings)
        # The class that the adapter was trained on, also that of a vision-language model.
        return load_whole(create_model_from_path, base, device_map=None, **settings)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the base model of the adapter, {base}, cannot be loaded: {str(error).splitlines()[0]} Put it "
            "back, or write its new place into adapter_config.json (`base_model_name_or_path`)."
        ) from error


def _tokenizer_of(source: Path) -> tuple[Any, Any]:
    """The tokenizer beside an adapter, and what is to be saved: itself, or the processor that holds it."""
    from transformers import AutoProcessor, AutoTokenizer

    with readable("tokenizer", source):
        if has_processor(source):
            processor = AutoProcessor.from_pretrained(source)
            return processor.tokenizer, processor
        tokenizer = AutoTokenizer.from_pretrained(source)
        return tokenizer, tokenizer


def _fit_vocabulary(model: Any, folder: str) -> None:
    """Give the base model as many embeddings as it had in the training, where tokens were added (`chat_template_path`).

    PEFT saves embeddings of another number whole, and cannot load them into a base model that has fewer.
    """
    from peft.utils.save_and_load import load_peft_weights

    ends = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    names = [name for name, module in model.named_modules() if any(module is part for part in ends)]
    rows = {
        len(tensor)
        for key, tensor in load_peft_weights(folder, device="cpu").items()
        if key.endswith(".weight") and "lora_" not in key and any(f".{name}." in key for name in names)
    }
    if rows and max(rows) != len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _tied_weight(model: Any) -> "torch.nn.Parameter | None":
    """The one matrix of a model's input and output embeddings, None where it has two."""
    head = model.get_output_embeddings()
    weight = model.get_input_embeddings().weight
    return weight if head is not None and head.weight is weight else None


def _untie(model: "PeftModel", tied: "torch.nn.Parameter") -> None:
    """Give each module a copy of the tied matrix: what is merged into one would change the other."""
    from torch.nn import Parameter

    holders = [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter is tied
    ]
    for module, name in holders[1:]:
        module.register_parameter(name, Parameter(tied.detach().clone(), requires_grad=False))


def _settle_tie(merged: Any, folder: str) -> None:
    """Tie the embeddings again if they are still the same, else let the config say that they are two."""
    import torch

    embeddings, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    same = torch.equal(embeddings.weight, head.weight)
    for config in (merged.config, merged.config.get_text_config()):
        config.tie_word_embeddings = same
    if same:
        head.weight = embeddings.weight
    else:
        logger.warning(
            "%s: the adapter changed one of the tied embeddings; merged, the model has a matrix for the input and one "
            "for the output (tie_word_embeddings: false).",
            folder,
        )


def _probe(config: "PretrainedConfig", adapter: "PeftConfig") -> "torch.Tensor":
    """Token ids, of shape `_PROBE_SHAPE`: drawn, the last ones, and those trained by themselves."""
    import torch

    text = config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(text.vocab_size, _PROBE_SHAPE, generator=generator)
    ids[0, -4:] = torch.arange(text.vocab_size - 4, text.vocab_size).clamp(min=0)
    trained = getattr(adapter, "trainable_token_indices", None) or []
    trained = [token for part in trained.values() for token in part] if isinstance(trained, dict) else trained
    ids[1, : len(trained[:8])] = torch.tensor(trained[:8], dtype=torch.long)
    # Tokens that stand for an image want one; a padding token is where a reward model stops to read.
    special = {value for key, value in config.to_dict().items() if key.endswith("_token_id") and isinstance(value, int)}
    plain = next(token for token in range(text.vocab_size) if token not in special | {text.pad_token_id})
    for token in special | ({text.pad_token_id} - {None}):
        ids[ids == token] = plain
    return ids


def _logits(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    """What a model finds: logits; of a value model's trunk, which has no head, hidden states."""
    import torch

    model.eval()
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return (outputs.logits if "logits" in outputs else outputs.last_hidden_state).float()


def _difference(found: "torch.Tensor", expected: "torch.Tensor") -> float:
    """How far logits are apart, relative to their size; NaN where one is no number."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _with_copies(model: "PreTrainedModel") -> "Iterator[tuple[str, torch.Tensor]]":
    """Each parameter and each buffer that is saved, by name."""
    saved = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _check_written(merged: "PreTrainedModel", folder: Path, source: Path) -> None:
    """Load what was written and compare weights and logits with the model in memory."""
    import torch

    loaded = type(merged).from_pretrained(folder, dtype="auto")
    kept, found = merged.state_dict(), loaded.state_dict()
    changed = [name for name in kept.keys() | found.keys() if name not in kept or name not in found]
    changed += [name for name in kept.keys() & found.keys() if not torch.equal(kept[name], found[name].to(kept[name]))]
    ids = torch.arange(1, 9)[None]
    if changed or not _difference(_logits(loaded, ids), _logits(merged, ids)) <= _ROUNDING:
        raise UserError(
            f"{source}: the merged model, written and loaded again, is another one ({', '.join(sorted(changed)[:3])}); "
            "nothing was written. Name base and adapter instead."
        )
