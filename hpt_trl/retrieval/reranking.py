"""A second look at the first pages of a ranking, by their text."""

from collections.abc import Sequence
from typing import Any, Protocol

from hpt_trl.errors import UserError
from hpt_trl.retrieval.vectors import load_model

QUERY_LIKELIHOOD = "query_likelihood"
_BATCH = 8
# Tokens of page and query that a causal model reads at most.
_LONGEST = 1024
_ASK = "\n\nA question that this page answers:"


class Reranker(Protocol):
    """Scores texts for a query: higher is better."""

    name: str

    def scores(self, query: str, texts: Sequence[str]) -> list[float]: ...


def open_reranker(name: str) -> Reranker:
    """Loads a reranker.

    Args:
        name: `query_likelihood:MODEL` with a causal language model, by Hub id, local folder or built-in name; or a
            cross-encoder of sentence-transformers, by Hub id or local folder.

    Raises:
        UserError: the model cannot be loaded, or an extra is missing.
    """
    kind, colon, model = name.partition(":")
    if colon and kind == QUERY_LIKELIHOOD:
        if not model:
            raise UserError(f"reranker: {name} names no model; write e.g. {QUERY_LIKELIHOOD}:smollm2-135m.")
        return QueryLikelihood(model)
    return CrossEncoder(name)


class CrossEncoder:
    """A cross-encoder of sentence-transformers, which reads query and page together.

    Attributes:
        name: of the model.

    Raises:
        UserError: it cannot be loaded, or is a base model, without a trained layer that scores a pair.
    """

    def __init__(self, name: str):
        self.name = name
        self._model = load_model("CrossEncoder", name)
        kinds = self._model[0].model.config.architectures or []
        if kinds and all(kind.endswith("Model") for kind in kinds):
            raise UserError(
                f"reranker: {name} is a base model ({kinds[0]}): the layer that scores a pair would be drawn at "
                "random. Name a cross-encoder."
            )

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """What the model gives for each pair; pages longer than it takes are cut at their end.

        Raises:
            UserError: it gives more than one number a pair.
        """
        found = self._model.predict([(query, text) for text in texts], batch_size=_BATCH, show_progress_bar=False)
        if found.ndim != 1:
            raise UserError(f"reranker: {self.name} gives {found.shape[1]} numbers a page; allowed: a model with one.")
        return [float(score) for score in found]


class QueryLikelihood:
    """A causal language model's mean log-probability of the query's tokens after the page's text.

    Source: Sachan et al. 2022, Improving Passage Retrieval with Zero-Shot Question Generation.

    Attributes:
        name: with the model.
    """

    def __init__(self, model: str):
        import torch
        from transformers import AutoModelForCausalLM

        from hpt_trl.models.loading import load_tokenizer, positions_of
        from hpt_trl.models.whole_models import load_whole

        self.name = f"{QUERY_LIKELIHOOD}:{model}"
        try:
            self._tokenizer: Any = load_tokenizer(model)
            loaded: Any = load_whole(AutoModelForCausalLM.from_pretrained, model, dtype=torch.float32)
        except UserError as error:
            raise UserError(f"reranker: {str(error).removeprefix('model_name_or_path: ')}") from error
        except (OSError, ValueError) as error:
            # Of another kind of model transformers lists every class that it has.
            why = str(error).partition("\n")[0]
            raise UserError(f"reranker: {model} cannot be loaded as a causal language model: {why}") from error
        self._model = loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._longest = min(positions_of(loaded.config) or _LONGEST, _LONGEST)

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """The mean log-probability for each page, in nats a token; long pages are cut at their end."""
        asked = self._ids(" " + query.strip())[: self._longest // 2]
        lead = self._ids(_ASK)
        room = self._longest - len(asked) - len(lead)
        rows = [[*self._ids(text)[:room], *lead, *asked] for text in texts]
        return [
            score
            for start in range(0, len(rows), _BATCH)
            for score in self._batch(rows[start : start + _BATCH], len(asked))
        ]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _batch(self, rows: list[list[int]], asked: int) -> list[float]:
        import torch

        width = max(len(row) for row in rows)
        # Padded on the right: what a causal model gives for the tokens before stays as it is.
        ids = torch.tensor([row + [self._tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logits = self._model(ids.to(self._model.device), attention_mask=mask.to(self._model.device)).logits
        scores = []
        for row, given in zip(rows, logits, strict=True):
            first = len(row) - asked
            told = torch.log_softmax(given[first - 1 : len(row) - 1].float(), dim=-1)
            targets = torch.tensor(row[first:], device=told.device)
            scores.append(told.gather(1, targets[:, None]).mean().item())
        return scores
