"""A trained reward model as a reward: the score of prompt and completion, encoded as in its training.

TRL's RewardTrainer ends texts with the end-of-sequence token and runs messages through the chat template; GRPOTrainer's
own use of a reward model ends no text, and so asks the model about something that it never saw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.models.folders import check_model_folder, is_adapter
from hpt_trl.models.hub_parts import adapter_folder
from hpt_trl.models.loading import load_config
from hpt_trl.models.readable import adapter_config

# Sequences that are scored at once.
BATCH = 16


class RewardModel:
    """A sequence classifier with one output, called as a reward function.

    The weights are loaded at the first call, onto the device of this process.

    Attributes:
        name: as it was given.
        folder: that of an adapter on the Hub is where it was downloaded to; of others the name.
        settings: `revision` and `trust_remote_code`, which all of it is loaded with.
        tokenizer: of the texts that it scores.
        config: of the model, or of the base model of an adapter.

    Args:
        name: folder that `stage: reward` wrote (a whole model or a LoRA adapter), or the Hub id of either.
        revision: of a model on the Hub.
        trust_remote_code: run code that comes with the model.
        dtype: type of the weights, as in `dtype` of a recipe; by default the one they are stored in.
        tokenizer: in place of its own, TRL's `reward_processing_classes`.
        model_init_kwargs: further arguments of `from_pretrained`; a `revision` or `dtype` among them stands above the
            others. The model is put on this process's device, whatever `device_map` says.

    Raises:
        UserError: no such model, another number of outputs than one, a tokenizer without padding token or with another
            one than the config's. Nothing but the config and the tokenizer has been loaded by then.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: Any = "auto",
        tokenizer: Any = None,
        model_init_kwargs: dict[str, Any] | None = None,
    ):
        self.name = name
        self.__name__ = Path(name).name
        further = {"revision": revision, "trust_remote_code": trust_remote_code, "dtype": dtype}
        further |= model_init_kwargs or {}
        further.pop("device_map", None)
        self.settings: dict[str, Any] = {key: further.pop(key) for key in ("revision", "trust_remote_code")}
        self._further = further
        self._model: Any = None
        self.folder = adapter_folder(name, revision=self.settings["revision"])
        self._adapter = is_adapter(self.folder)
        if self._adapter and (unknown := sorted(set(further) - {"dtype"})):
            raise UserError(f"model_init_kwargs: {', '.join(unknown)} cannot be set for {name}, which is an adapter.")
        check_model_folder(name, key="reward_model_name_or_path", adapters=True)
        self.tokenizer = self._padding(self._load_tokenizer() if tokenizer is None else tokenizer)
        self.config = self._adapted_config() if self._adapter else self._checked_config()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Returns the score of each completion after its prompt (both texts, or both messages).

        Raises:
            UserError: messages for a tokenizer without chat template.
        """
        import torch

        model = self._loaded()
        sequences = [self.encode(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        # Those that begin alike together, whose beginning is computed once; where rows are padded, by length.
        padded = model.base_model.is_padding_free is False
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]) if padded else sequences[index])
        scores = [0.0] * len(sequences)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(sequences[index]) for index in batch)
            ids = torch.full((len(batch), longest), self.tokenizer.pad_token_id)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for place, index in enumerate(batch):
                ids[place, : len(sequences[index])] = torch.tensor(sequences[index])
                mask[place, : len(sequences[index])] = 1
            with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
                logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            for index, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
                scores[index] = score
        return scores

    def encode(self, prompt: Any, completion: Any) -> list[int]:
        """Returns the tokens of a prompt and its completion, those that RewardTrainer makes of them.

        Raises:
            UserError: messages for a tokenizer without chat template.
        """
        if isinstance(prompt, str):
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            end = self.tokenizer.eos_token
            return self.tokenizer(text=prompt + (text if text.endswith(end) else text + end))["input_ids"]
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"reward_model_name_or_path: the prompts are messages, but the tokenizer of {self.name} has no chat "
                "template; set conversational: false, or use a reward model that was trained on messages."
            )
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        return self.tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=True)["input_ids"]

    def _load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="right", **self.settings)
        # The tokenizers library raises plain exceptions.
        except Exception as error:
            raise UserError(
                f"reward_model_name_or_path: the tokenizer of {self.name} cannot be loaded: {_first_line(error)}. "
                "Write the output folder of a `stage: reward` run, or a Hub id that is cached or reachable."
            ) from error
        return tokenizer

    def _padding(self, tokenizer: Any) -> Any:
        if tokenizer.pad_token is None:
            raise UserError(
                f"reward_model_name_or_path: the tokenizer of {self.name} has no padding token, by which the model "
                "finds the last token of each text. Set one that texts do not hold and save it beside the model: "
                "tokenizer.pad_token = ...; tokenizer.save_pretrained(folder)."
            )
        return tokenizer

    def _checked_config(self) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.name, **self.settings)
        # Of values that are of a wrong kind each config's class says it in its own way.
        except Exception as error:
            raise UserError(
                f"reward_model_name_or_path: the config of {self.name} cannot be loaded: {_first_line(error)}."
            ) from error
        kinds = config.architectures or []
        if config.num_labels != 1 or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise UserError(
                f"reward_model_name_or_path: {self.name} is no reward model: it holds {', '.join(kinds) or '?'} with "
                f"{config.num_labels} outputs, not a sequence classifier with one. Train one with `stage: reward`."
            )
        pad = config.get_text_config().pad_token_id
        # A config that names none takes the tokenizer's, by which the model finds the last token of each text.
        if pad is not None and pad != self.tokenizer.pad_token_id:
            raise UserError(
                f"reward_model_name_or_path: {self.name} pads with token {pad} by its config and with "
                f"{self.tokenizer.pad_token_id} by its tokenizer; make the two agree."
            )
        return config

    def _adapted_config(self) -> Any:
        adapter = adapter_config(self.folder)
        if adapter.task_type != "SEQ_CLS":
            raise UserError(
                f"reward_model_name_or_path: {self.name} holds an adapter of the task {adapter.task_type}, not of a "
                "reward model (SEQ_CLS). Train one with `stage: reward`."
            )
        try:
            return load_config(str(adapter.base_model_name_or_path), revision=adapter.revision)
        except UserError as error:
            message = str(error).removeprefix("model_name_or_path: ")
            raise UserError(
                f"reward_model_name_or_path: the base model of the adapter {self.name}: {message}"
            ) from error

    def _loaded(self) -> Any:
        if self._model is None:
            from accelerate import PartialState

            from hpt_trl.models.loading import load_sequence_classifier
            from hpt_trl.models.padding_free.trunks import take_packed_rows

            model = load_sequence_classifier(
                self.folder, pad_token_id=self.tokenizer.pad_token_id, **self.settings, **self._further
            )
            take_packed_rows(model.base_model)
            model.requires_grad_(False)
            self._model = model.eval().to(PartialState().device)
        return self._model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
