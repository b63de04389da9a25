"""Where a frozen model comes from: found and told from others without its weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from hpt_trl.errors import UserError
from hpt_trl.models.digests import adapter_digest, model_digest
from hpt_trl.models.folders import check_model_folder, is_adapter
from hpt_trl.models.hub_parts import adapter_folder
from hpt_trl.models.loading import load_config, load_tokenizer, model_exists
from hpt_trl.models.readable import adapter_config, readable
from hpt_trl.token_scores import tokenizers

_MODEL_KEY = "model_name_or_path: "


@dataclass(frozen=True)
class Source:
    """A model, or the adapter over one.

    Attributes:
        key: of the recipe, which names it; messages start with it.
        name: its value.
        base: the model, without the adapter.
        revision: of the model, on the Hub.
        adapter: the adapter's config, None without one.
        folder: of the adapter, also of one on the Hub; else the name.
    """

    key: str
    name: str
    base: str
    revision: str | None
    adapter: PeftConfig | None
    folder: str
    trust_remote_code: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What `from_pretrained` takes beside the name of the base."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def error(self, message: str) -> UserError:
        """Return (do not raise) the error about this model."""
        return UserError(f"{self.key}: {self.name} {message}")

    def load_config(self) -> PretrainedConfig:
        """Load the config, of an adapter's base; sees that weights are there.

        Raises:
            UserError: there is no such model.
        """
        try:
            model_exists(self.base, **self.settings)
            return load_config(self.base, **self.settings)
        except UserError as error:
            base = "" if self.adapter is None else f"the base model of the adapter {self.name}: "
            raise UserError(f"{self.key}: {base}{str(error).removeprefix(_MODEL_KEY)}") from error

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; of an adapter that came without one, its base's.

        Raises:
            UserError: there is none.
        """
        try:
            # A run with an adapter leaves its tokenizer beside it; an adapter from elsewhere may come without.
            if self.adapter is not None and (Path(self.folder) / "tokenizer_config.json").is_file():
                with readable("tokenizer", self.folder):
                    return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
            loaded = load_tokenizer(self.base, **self.settings)
            return loaded.tokenizer if isinstance(loaded, ProcessorMixin) else loaded  # type: ignore[attr-defined]
        except UserError as error:
            raise UserError(f"{self.key}: {str(error).strip().removeprefix(_MODEL_KEY)}") from error

    def check_tokens(self, config: Any, tokenizer: PreTrainedTokenizerBase, *, what: str, remedy: str) -> None:
        """Refuse a model that would read other tokens than the trained one does, or fewer.

        Args:
            config: the trainer's; its `eos_token`, `packing` and `max_length` count.
            tokenizer: of the trained model.
            what: the sentence that says what another tokenizer means.
            remedy: what to name instead.

        Raises:
            UserError: what differs.
        """
        ours = tokenizer
        if config.eos_token in tokenizer.get_vocab():
            # The trainer sets it later; a model that was tuned with this key was saved with it.
            ours = copy.deepcopy(tokenizer)
            ours.eos_token = config.eos_token
        said = tokenizers.differences(ours, self.load_tokenizer())
        if said:
            raise self.error(
                f"has another tokenizer than the trained model, so {what}:\n  " + "\n  ".join(said) + f"\n{remedy}"
            )
        limits = self.load_config().get_text_config()
        if limits.vocab_size < len(ours):
            raise self.error(f"has embeddings of {limits.vocab_size} tokens, but the tokenizer has {len(ours)}.")
        longest = limits.to_dict().get("max_position_embeddings")
        # Unpacked rows are rarely as long as they may be.
        if config.packing and longest is not None and config.max_length is not None and config.max_length > longest:
            raise self.error(f"takes {longest} tokens, but `max_length` is {config.max_length}; lower it.")

    def digests(self) -> dict[str, Any]:
        """Return what tells this model's weights from others', by name.

        Raises:
            UserError: the model is not there.
        """
        config = self.load_config()
        try:
            weights = model_digest(self.base, revision=self.revision)
        except UserError as error:
            raise UserError(f"{self.key}: {str(error).removeprefix(_MODEL_KEY)}") from error
        return {
            "architecture": (config.architectures or [config.model_type])[0],
            "weights": weights,
            "adapter": None if self.adapter is None else adapter_digest(self.folder),
        }


def source_of(name: str, key: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Source:
    """Find where a model comes from.

    Args:
        name: a Hub id, a model folder, the folder of an adapter, or a built-in name.
        key: the recipe key that names it.
        revision: branch, tag or commit on the Hub, of an adapter there its own; an adapter knows its base's.

    Raises:
        UserError: it is a folder that is not there or holds no model, or an adapter that puts tokens before each row.
    """
    check_model_folder(name, key=key, adapters=True)
    folder = adapter_folder(name, revision=revision)
    if not is_adapter(folder):
        return Source(key, name, name, revision, None, name, trust_remote_code)
    adapter = adapter_config(folder)
    base = str(adapter.base_model_name_or_path)
    found = Source(key, name, base, adapter.revision, adapter, folder, trust_remote_code)
    if adapter.is_prompt_learning:
        raise found.error("puts learnt tokens before each row (prompt learning); name a LoRA adapter.")
    return found


def preparation(config: Any, tokenizer: PreTrainedTokenizerBase, *, autocast: str | None) -> dict[str, Any]:
    """Return what the scores of a row depend on beside the model that gives them, by name.

    Args:
        config: a `trl.SFTConfig`: what a row is, and where in it a loss is taken.
        autocast: type that the forward pass runs in, None without autocast.
    """
    return {
        "autocast": autocast,
        "tokenizer": tokenizers.digest(tokenizer),
        "packing": config.packing_strategy if config.packing else None,
        # Rows that are padded, or are computed without padding, are the same rows.
        "padding_free": bool(config.padding_free),
        **{key: getattr(config, key) for key in _PREPARATION},
    }


_PREPARATION = ("max_length", "truncation_mode", "completion_only_loss", "assistant_only_loss")
