"""A value model: a trunk under a head that gives every position a number, V.

Its folder is the trunk's, a whole model or an adapter over one, with the head in a folder of its own: vLLM and
`from_pretrained` take every *.safetensors beside a model for the model's.

    config.json, model.safetensors            the trunk, without a language model's head; or
    adapter_config.json, adapter_model.*      an adapter over it
    value_head/value_head.json                what kind of head, and how it was trained
    value_head/value_head.safetensors         its weights
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from peft import PeftConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig
from transformers.utils import ModelOutput

from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.models.dropout import leave_dropout_out
from hpt_trl.models.folders import VALUE_CONFIG_FILE, VALUE_HEAD_FILE, VALUE_TASK, is_adapter, is_value_model
from hpt_trl.models.hub_parts import value_model_folder
from hpt_trl.models.loading import load_config
from hpt_trl.models.readable import adapter_config
from hpt_trl.models.sharded_weights import whole
from hpt_trl.models.trainable import refuse_broken
from hpt_trl.models.whole_models import load_whole

_FORMAT = 1


@dataclass(frozen=True)
class HeadSettings:
    """What a value head is.

    Attributes:
        hidden_size: width of the trunk's hidden states.
        kind: `linear`, or `mlp`.
        dropout: of an `mlp`, while training.
        bias: the value that all positions have at first.
        objective: what it was trained for: `pairwise` values are known up to a shift, `regression` ones are chances of
            success; None where nobody says.
    """

    hidden_size: int
    kind: str = "linear"
    dropout: float = 0.0
    bias: float = 0.0
    objective: str | None = None


class ValueHead(nn.Module):
    """What makes a value of a hidden state, computed in float32 whatever autocast or a sharded training say."""

    def score(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... 1"]:
        raise NotImplementedError

    @property
    def last(self) -> "_Linear":
        """The layer that makes the value; its bias is added to every one."""
        raise NotImplementedError

    def forward(self, hidden: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows tokens"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(hidden).squeeze(-1).float()


class _Linear(nn.Linear):
    """In float32 at least, also where a sharded training computes with half-precision copies of the weights."""

    def forward(self, input: Float[Tensor, "... width"]) -> Float[Tensor, "... wide"]:
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        return F.linear(input.to(kind), self.weight.to(kind), self.bias.to(kind))


class LinearValueHead(ValueHead):
    """V = w . h + b; the bias everywhere at first."""

    def __init__(self, hidden_size: int, *, bias: float = 0.0):
        super().__init__()
        self.linear = _Linear(hidden_size, 1)
        _constant(self.linear, bias)

    def score(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... 1"]:
        return self.linear(hidden)

    @property
    def last(self) -> _Linear:
        return self.linear


class MLPValueHead(ValueHead):
    """d -> d/4 -> d/8 -> 1, GELU and dropout between; the bias everywhere at first, since the last layer is zero."""

    def __init__(self, hidden_size: int, *, dropout: float = 0.2, bias: float = 0.0):
        super().__init__()
        wide, narrow = max(hidden_size // 4, 1), max(hidden_size // 8, 1)
        self.layers = nn.Sequential(
            _Linear(hidden_size, wide),
            nn.GELU(),
            nn.Dropout(dropout),
            _Linear(wide, narrow),
            nn.GELU(),
            nn.Dropout(dropout),
            _Linear(narrow, 1),
        )
        _constant(self.layers[-1], bias)

    def score(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... 1"]:
        return self.layers(hidden)

    @property
    def last(self) -> _Linear:
        return cast(_Linear, self.layers[-1])


@dataclass
class ValueModelOutput(ModelOutput):
    """What a value model finds.

    Attributes:
        token_values: (rows, tokens) float32, V after each token.
        logits: (rows, 1) float32, the mean of the values over the output's tokens; None where these are not given. The
            name is that of a reward model's score.
    """

    token_values: Tensor | None = None
    logits: Tensor | None = None


class ValueModel(nn.Module):
    """A trunk under a value head. Attributes that it has not are its trunk's, as with `PeftModel`."""

    def __init__(self, trunk: Any, head: ValueHead, settings: HeadSettings):
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "trunk":
                raise
            return getattr(self.trunk, name)

    @property
    def is_adapted(self) -> bool:
        """Whether the trunk has an adapter."""
        return bool(getattr(self.trunk, "peft_config", None))

    @property
    def _hf_peft_config_loaded(self) -> bool:
        """By this name transformers asks whether there is an adapter to train over quantized weights."""
        return self.is_adapted

    @property
    def is_quantized(self) -> bool:
        """Whether the trunk was loaded with quantized weights."""
        return any(getattr(self.trunk, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        output_mask: Bool[Tensor, "rows tokens"] | None = None,
        **others: Any,
    ) -> ValueModelOutput:
        """Values of every position.

        Args:
            position_ids: of rows that lie end to end without padding; attention ends with each.
            output_mask: the tokens of each output, over which `logits` is the mean.
            others: what its trunk takes beside these.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        hidden = self.trunk(**inputs, **{**others, "use_cache": False}).last_hidden_state
        values = self.head(hidden)
        logits = None if output_mask is None else mean_value(values, output_mask)
        return ValueModelOutput(token_values=values, logits=logits)

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the model's folder.

        Args:
            state_dict: weights that were gathered from several processes; by default the model's own.
        """
        trunk, head = (None, None) if state_dict is None else split_state(state_dict)
        self.trunk.save_pretrained(folder, state_dict=trunk)
        self.save_head(folder, head)

    def save_head(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the head beside its trunk."""
        weights = self.head.state_dict() if state_dict is None else state_dict
        file = Path(folder) / VALUE_HEAD_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, file)
        text = json.dumps({"format": _FORMAT, **asdict(self.settings)}, indent=2)
        write_atomically(Path(folder) / VALUE_CONFIG_FILE, text + "\n")

    def load_head(self, folder: str | Path) -> None:
        """Load a head that `save_head` wrote.

        Raises:
            UserError: there is none, it is damaged, or it has another shape.
        """
        file = Path(folder) / VALUE_HEAD_FILE
        if not file.is_file():
            raise UserError(f"{file} is missing: the folder was not written by `stage: critic`, or not to its end.")
        try:
            self.head.load_state_dict(load_file(file))
        except SafetensorError as error:
            raise UserError(
                f"{file} is damaged ({error}); train the value model anew, or copy it once more."
            ) from error
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file} is the head of another value model: {reason}") from error


def mean_value(
    values: Float[Tensor, "rows tokens"], output_mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows 1"]:
    """The mean of the values over each output's tokens."""
    mask = output_mask.to(values.dtype)
    return (values * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


def split_state(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the trunk and of the head of a value model's state, by their own names."""
    parts = []
    for part in ("trunk.", "head."):
        mine = {name: value for name, value in state_dict.items() if name.startswith(part)}
        parts.append({name.removeprefix(part): value for name, value in mine.items()})
    return parts[0], parts[1]


def read_head_settings(folder: str | Path) -> HeadSettings:
    """What the head of a value model's folder is.

    Raises:
        UserError: the file is broken, or of a later version.
    """
    file = Path(folder) / VALUE_CONFIG_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("format") != _FORMAT:
            raise UserError(f"{file} was written by another version of hpt-trl; train the value model anew.")
        return HeadSettings(**found)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is damaged ({error}); train the value model anew, or copy it once more.") from error


def new_head(settings: HeadSettings) -> MLPValueHead | LinearValueHead:
    """A head as the settings say, at its start."""
    if settings.kind == "mlp":
        return MLPValueHead(settings.hidden_size, dropout=settings.dropout, bias=settings.bias)
    return LinearValueHead(settings.hidden_size, bias=settings.bias)


def new_value_model(
    name: str,
    settings: Callable[[int], HeadSettings],
    *,
    adapter: PeftConfig | None = None,
    adapter_settings: dict[str, Any] | None = None,
    **loading: Any,
) -> ValueModel:
    """Put a new head on the trunk of a language model or of a reward model.

    Args:
        name: Hub id, model folder or built-in name.
        settings: of the trunk's width: the head.
        adapter: LoRA on the trunk; by default the whole trunk is trained.
        adapter_settings: of `get_peft_model`.
        loading: of `from_pretrained`.
    """
    trunk: Any = load_whole(AutoModel.from_pretrained, name, **loading)
    made = settings(trunk.config.get_text_config().hidden_size)
    # Drawn before the adapter: with and without one it is the same.
    head = new_head(made)
    if adapter is not None:
        adapter = copy.copy(adapter)
        adapter.task_type = VALUE_TASK
        trunk = get_peft_model(trunk, adapter, **(adapter_settings or {}))
    return ValueModel(trunk, head, made)


def load_value_model(name: str, *, trainable: bool, **loading: Any) -> ValueModel:
    """Load a value model, or make one of a model that is none.

    A folder of `stage: critic` gives trunk and head. A sequence classifier gives its trunk, and its score as a linear
    head. A language model gives its trunk, under a linear head of zeros.

    Args:
        name: Hub id, model folder, adapter folder of `stage: critic`, or built-in name; of a value model on the Hub
            all files are downloaded.
        trainable: whether it is trained on: the adapter then is, else nothing. Dropout is left out in any case: the
            values of a position are to be the same each time they are asked for.
        loading: of `from_pretrained`, e.g. `dtype`.

    Raises:
        UserError: a head that is missing or damaged, or a classifier whose score is no value.
    """
    name = value_model_folder(name, revision=loading.get("revision"))
    if not is_value_model(name):
        return _borrowed(name, **loading)
    settings = read_head_settings(name)
    if is_adapter(name):
        adapter = adapter_config(name)
        trunk: Any = load_whole(
            AutoModel.from_pretrained,
            str(adapter.base_model_name_or_path),
            adapter=name,
            adapter_settings={"is_trainable": trainable},
            **{**loading, "revision": adapter.revision},
        )
    else:
        trunk = load_whole(AutoModel.from_pretrained, name, **loading)
    model = ValueModel(trunk, new_head(settings), settings)
    model.load_head(name)
    if trainable:
        # What scores alone is tried on rows.
        refuse_broken(model.head, name)
    leave_dropout_out(model)
    return model


def _borrowed(name: str, **loading: Any) -> ValueModel:
    """A value model of a sequence classifier or a language model."""
    known = {key: loading[key] for key in ("trust_remote_code", "revision") if key in loading}
    config = load_config(name, **known)
    is_classifier, reason = _is_classifier(config), why_no_value(config, **known)
    if reason is not None:
        raise UserError(f"{name} {reason}")
    loader: Any = AutoModelForSequenceClassification if is_classifier else AutoModel
    model = load_whole(loader.from_pretrained, name, **loading)
    if is_classifier:
        return of_classifier(model)
    settings = HeadSettings(hidden_size=model.config.get_text_config().hidden_size)
    return ValueModel(model, new_head(settings), settings)


def of_classifier(model: Any) -> ValueModel:
    """The value model of a sequence classifier of one output (`why_no_value`): its trunk, its score as the head."""
    settings = HeadSettings(hidden_size=model.config.get_text_config().hidden_size)
    head = LinearValueHead(settings.hidden_size)
    with torch.no_grad(), whole(model.score.weight):
        head.linear.weight.copy_(model.score.weight)
    return ValueModel(model.base_model, head, settings)


def why_no_value(
    config: PretrainedConfig, *, trust_remote_code: bool = False, revision: str | None = None
) -> str | None:
    """Say why a sequence classifier's score is no value; None where it is one, or of another model. Loads no weights.

    Args:
        config: of the model.
        trust_remote_code, revision: as it is loaded with.
    """
    if not _is_classifier(config):
        return None
    (kind,) = (config.architectures or [])[:1]
    if config.num_labels != 1:
        return f"gives {config.num_labels} scores ({kind}), and a value is one; name a reward model, of one label."
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=trust_remote_code, **({"code_revision": revision} if revision else {})
        )
    if isinstance(dict(model.named_children()).get("score"), nn.Linear):
        return None
    return (
        f"has no linear layer `score` ({kind}), whose score of the last token would be its value; name a reward model "
        "of a decoder, or the output of `stage: critic`."
    )


def _is_classifier(config: PretrainedConfig) -> bool:
    return any("SequenceClassification" in kind for kind in config.architectures or [])


def _constant(layer: Any, value: float) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
