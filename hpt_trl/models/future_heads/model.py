"""A model with heads: the model itself, with a further module and a decoding of its own."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hpt_trl.models.folders import check_model_folder, is_adapter
from hpt_trl.models.future_heads.chained import SHIPPED, save_chained_heads
from hpt_trl.models.future_heads.decoding import HeadCandidates, Speculation
from hpt_trl.models.future_heads.heads import FutureHeads
from hpt_trl.models.future_heads.storage import folder_with_heads, heads_in, load_heads, read_config, save_heads
from hpt_trl.models.future_heads.trunk import parts_of, watched
from hpt_trl.models.readable import adapter_config
from hpt_trl.models.whole_models import load_whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Mixed into a causal language model, whose methods it wraps; by itself it is none.
_Base: Any = object


class PredictsAhead(_Base):
    """What a model with `FutureHeads` does beside the plain one: it drafts with them, and saves them in their folder.

    `generate(..., use_mtp=True)` decodes self-speculatively; all else is the plain model's.

    Attributes:
        future_heads: heads 2 to n.
        speculation: what the last such `generate` came to.
    """

    future_heads: FutureHeads
    speculation: Speculation | None = None

    def _assisted_decoding(self, *args: Any, **kwargs: Any) -> Any:
        with watched(parts_of(cast("PreTrainedModel", self)).layer) as seen:
            self._seen = seen
            try:
                return super()._assisted_decoding(*args, **kwargs)
            finally:
                del self._seen

    def _get_candidate_generator(self, generation_config: Any, **kwargs: Any) -> Any:
        # Those that a checkpoint ships are transformers' own to draft with; it reads them from that checkpoint.
        if not generation_config.use_mtp or self.future_heads.kind == SHIPPED:
            return super()._get_candidate_generator(generation_config=generation_config, **kwargs)
        self.speculation = Speculation()
        return HeadCandidates(
            self, self._seen, self.speculation, generation_config, kwargs["logits_processor"], kwargs["input_ids"]
        )

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: "dict[str, Tensor] | None" = None,
        **kwargs: Any,
    ) -> None:
        """Write the plain next-token model, and the heads into their folder in it."""
        heads, plain = heads_in(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=plain, **kwargs)
        if is_main_process:
            save = save_chained_heads if self.future_heads.kind == SHIPPED else save_heads
            save(cast("PreTrainedModel", self), heads, save_directory)


def attach(model: "PreTrainedModel", heads: FutureHeads) -> None:
    """Put heads on a model, without a wrapper around it; they are its module `future_heads` from then on."""
    model.future_heads = heads  # type: ignore[assignment]
    if not isinstance(model, PredictsAhead):
        plain: Any = type(model)
        model.__class__ = _class_with_heads(plain)


def load_with_future_heads(folder: str | Path, *, revision: str | None = None, **kwargs: Any) -> Any:
    """Load a model and the heads beside it.

    Args:
        folder: what a run of `stage: mtp` wrote: the plain model with the heads in `future_heads`, or an adapter with
            them. Of a Hub id all files are downloaded.
        revision: of a Hub id.
        kwargs: of `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model, or a `PeftModel` around it. `generate(..., use_mtp=True)` drafts with the heads.

    Raises:
        UserError: no model or no heads there, or heads of another model.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM

    if folder_with_heads(str(folder), revision=revision) != str(folder):
        folder = snapshot_download(str(folder), revision=revision)
    check_model_folder(str(folder), adapters=True)
    read_config(folder)
    loader = AutoModelForCausalLM.from_pretrained
    if is_adapter(str(folder)):
        adapter = adapter_config(folder)
        base = str(adapter.base_model_name_or_path)
        adapted = load_whole(loader, base, adapter=str(folder), revision=adapter.revision, **kwargs)
        # After the adapter, which would be put into the heads as well.
        attach(adapted.get_base_model(), load_heads(adapted.get_base_model(), folder))
        return adapted
    model = load_whole(loader, str(folder), **kwargs)
    attach(model, load_heads(model, folder))
    return model


@cache
def _class_with_heads(base: type) -> type:
    # Under the model's own name, which it writes into its config.
    return type(base.__name__, (PredictsAhead, base), {"__module__": base.__module__, "__doc__": base.__doc__})
