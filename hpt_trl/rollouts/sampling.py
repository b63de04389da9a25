"""How rollouts are drawn, where it must be known to the loss."""

from typing import Any


def refuse_biased_correction(config: Any) -> None:
    """Find truncated sampling under the correction for vLLM.

    The correction weighs a token by its probability in training over that in vLLM. vLLM's is the one after the cut,
    which has raised what is left to a sum of 1; the training's is the one before it. The ratio would correct for the
    cut, with tokens missing that would have to make up for it.

    Args:
        config: a `trl.GRPOConfig`.

    Raises:
        ValueError: the setting, and what to write instead.
    """
    if not (config.use_vllm and config.vllm_importance_sampling_correction):
        return
    given = {"top_p": config.top_p, "top_k": config.top_k, "min_p": config.min_p} | (config.generation_kwargs or {})
    cuts = {
        "top_p": (given["top_p"] is not None and given["top_p"] < 1, "1.0"),
        "top_k": (given["top_k"] is not None and given["top_k"] > 0, "0"),
        "min_p": (given["min_p"] is not None and given["min_p"] > 0, "0.0"),
    }
    for name, (is_cut, neutral) in cuts.items():
        if is_cut:
            raise ValueError(
                f"`{name}` is {given[name]}: the probabilities of truncated sampling are others than the training's, "
                f"and vLLM's importance-sampling correction would be biased by it. Set `{name}: {neutral}`, or "
                "`vllm_importance_sampling_correction: false`."
            )
