"""What the method of a recipe is called on its card, and which papers are to be cited for it.

The stage alone does not say it: settings make another published method of `hpt`, and of multi-token prediction. What
they do is in docs/hybrid.md and docs/mtp.md; a recipe holds what its user has written, so their defaults stand here as
well.
"""

import json
from collections.abc import Mapping
from typing import Any

from hpt_trl.hub.papers import CHORD, DPO, GAE, GRPO, HPT, LORA, LUFFY, MTP, PPO, QLORA, RHO1, SRFT, VRAG, Paper

Method = tuple[str, tuple[Paper, ...]]

# A stage without a paper is next-token training or a model for others.
_SFT: Method = ("Supervised fine-tuning on demonstrations", ())
_GRPO: Method = ("Group Relative Policy Optimization", (GRPO,))
_MTP: Method = ("Multi-token prediction", (MTP,))
_RHO1: Method = ("Selective language modelling: the loss of selected tokens alone (Rho-1)", (RHO1,))
_LUFFY: Method = ("LUFFY: rollouts, and off-policy reinforcement learning on each demonstration", (LUFFY,))
_SRFT: Method = ("SRFT: rollouts and demonstrations of every prompt, weighted by the policy's entropy", (SRFT,))
_CHORD: Method = (
    "CHORD: reinforcement learning and supervised learning of every prompt, by a weight that falls over the training",
    (CHORD,),
)
_HPT: Method = (
    "Hybrid Post-Training: demonstrations where rollouts fail, reinforcement learning where they do not",
    (HPT,),
)
_STAGES: dict[str, Method] = {
    "pretrain": ("Pretraining: a new model, trained on the next token", ()),
    "sft": _SFT,
    "ref_tuning": ("Fine-tuning of a reference model on selected solutions", (RHO1,)),
    "rho1": _RHO1,
    "reward": ("A reward model, trained on comparisons of answers", ()),
    "critic": ("A value model, trained on right and wrong solutions", ()),
    "dpo": ("Direct Preference Optimization", (DPO,)),
    "grpo": _GRPO,
    "ppo": ("Proximal Policy Optimization with a learnt critic", (PPO,)),
}
# TRL's number of rollouts of a prompt.
_GROUP = 8
# Weights that are made of a value model's advantages; all but the first are controls, as is `random_matched`.
_VALUED = ("verifiable", "shuffled", "batch_permuted", "inverted", "position")


def method_of(recipe: Mapping[str, Any]) -> Method:
    """What the method of a recipe is called, and the papers to cite, without one named twice."""
    stage = str(recipe["stage"])
    if stage == "hpt":
        name, papers = _hybrid(recipe)
    elif stage == "mtp":
        name, papers = _multi_token(recipe)
    else:
        name, papers = _STAGES.get(stage, (f"`stage: {stage}`", ()))
    papers += (VRAG,) if str(recipe.get("environment", "")).startswith("vrag") else ()
    if recipe.get("use_peft"):
        papers += (QLORA, LORA) if recipe.get("load_in_4bit") else (LORA,)
    return name, papers


def _hybrid(recipe: Mapping[str, Any]) -> Method:
    strategy, loss = recipe.get("unify_strategy", "switch"), recipe.get("offline_loss_type", "sft")
    if strategy == "no":
        return _GRPO
    if strategy == "soft":
        return _soft(recipe.get("soft_table", "type_0"), loss)
    gate, gate_off = recipe.get("switch_gate", 0), recipe.get("switch_gate_off")
    if gate < 0 and gate_off is None:
        return _GRPO
    if gate >= recipe.get("num_generations", _GROUP) and loss == "sft":
        return _SFT
    if gate < 0:
        return _off_policy()
    return _with_loss(loss, off=gate_off is not None)


def _soft(table: Any, loss: str) -> Method:
    if table == "on_off":
        return _LUFFY
    if table == "on_sft":
        both = ("Reinforcement learning and supervised learning on the demonstration of every prompt, added", (GRPO,))
        return {"off_policy": _LUFFY, "srft": _SRFT, "chord": _CHORD}.get(loss, both)
    if isinstance(table, str) and table.lstrip().startswith("{"):
        table = json.loads(table)
    off = any(float(row[1]) for row in table.values()) if isinstance(table, dict) else table in ("type_0", "type_1")
    name, papers = _with_loss(loss, off=off)
    return f"{name}; coefficients by the share of solved rollouts", papers


def _with_loss(loss: str, *, off: bool) -> Method:
    """HPT's gate or table with a loss of the demonstrations; `off` where some have an off-policy term beside it."""
    if loss == "off_policy":
        return _off_policy()
    name, papers = _HPT
    if loss in ("srft", "chord"):
        name, papers = f"{name}, with the losses of {loss.upper()}", (HPT, SRFT if loss == "srft" else CHORD)
    return name, (*papers, LUFFY) if off else papers


def _off_policy() -> Method:
    return f"{_HPT[0]}, with LUFFY's off-policy loss of the demonstrations", (HPT, LUFFY)


def _multi_token(recipe: Mapping[str, Any]) -> Method:
    weighting, ahead = recipe.get("weighting", "uniform"), recipe.get("n_future_tokens")
    # Of one token ahead, nothing is left but the next one.
    name, papers = _SFT if ahead == 1 else _MTP
    if weighting == "rho1":
        return _RHO1 if ahead == 1 else (f"{name}, on the tokens that a reference model selects (Rho-1)", (MTP, RHO1))
    if weighting == "verifiable":
        return f"{name}, each token weighted by its advantage under a value model", (*papers, GAE)
    if weighting != "uniform":
        return f"{name}, with the control weights `{weighting}`", (*papers, GAE) if weighting in _VALUED else papers
    return name, papers
