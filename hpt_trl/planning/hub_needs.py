"""Models, tokenizers and rows that a recipe names by their ids on the Hub."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from hpt_trl.models.folders import ADAPTER_FILE, CONFIG_FILE
from hpt_trl.planning.need import GATED, TIMEOUT, Need


@dataclass
class Hub:
    """Where repositories of the Hub are found: in the cache, else on the network.

    Attributes:
        unreachable: why the network is not asked (again); empty while it answers.
    """

    unreachable: str = ""
    _answers: dict[tuple[str, str], tuple[bool, str]] = field(default_factory=dict)

    def model(self, name: str, revision: str | None = None) -> tuple[bool, str]:
        """Whether a model is at hand, and where, or why not."""
        from huggingface_hub import try_to_load_from_cache

        for file in (CONFIG_FILE, ADAPTER_FILE):
            config = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(config, str) and any(
                path.suffix in (".safetensors", ".bin", ".gguf") for path in Path(config).parent.iterdir()
            ):
                return True, "in the Hub's cache"
        return self._ask(name, "model")

    def tokenizer(self, name: str) -> tuple[bool, str]:
        """The same for a tokenizer."""
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str):
            return True, "in the Hub's cache"
        return self._ask(name, "model")

    def dataset(self, name: str) -> tuple[bool, str]:
        """The same for a dataset, which lies prepared in the cache of `datasets`."""
        from huggingface_hub.constants import HF_HOME

        cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
        if (cache / name.replace("/", "___")).is_dir():
            return True, "in the cache of datasets"
        return self._ask(name, "dataset")

    def _ask(self, name: str, kind: str) -> tuple[bool, str]:
        if (name, kind) not in self._answers:
            self._answers[name, kind] = self._asked(name, kind)
        return self._answers[name, kind]

    def _asked(self, name: str, kind: str) -> tuple[bool, str]:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
        from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

        if HF_HUB_OFFLINE:
            return False, "not in the cache; the network was not tried (HF_HUB_OFFLINE is set)"
        if self.unreachable:
            return False, f"not in the cache; {self.unreachable}"
        api = HfApi()
        try:
            found = (api.model_info if kind == "model" else api.dataset_info)(name, timeout=TIMEOUT)
        except HFValidationError:
            return False, "neither a local path nor a name that the Hub can have (owner/name)"
        except RepositoryNotFoundError:
            return False, f"not on {ENDPOINT}, or private and you are not logged in (hf auth login)"
        except (OSError, HTTPError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.unreachable = f"{ENDPOINT} did not answer within {TIMEOUT:g} s ({reason})"
            return False, f"not in the cache; {self.unreachable}"
        if found.gated and get_token() is None:
            return False, f"on {ENDPOINT}, {GATED} there, then hf auth login"
        return True, f"on {ENDPOINT}, to be downloaded"


def hub_need(what: str, found: tuple[bool, str], remedy: str) -> Need:
    """Returns the need of what a `Hub` has found or not.

    Args:
        remedy: what helps where it is not in the cache.
    """
    met, said = found
    return Need(what, met, said, remedy if said.startswith("not in the cache") else "")
