"""The table of the stages that recipes can name.

A new method adds one folder with a `stage.py` and one line to `STAGE_MODULES`; nothing else here changes.
`stage: pipeline` is none of them: it is a chain of recipes, each run by itself.
"""

from importlib import import_module

from hpt_trl.errors import UserError
from hpt_trl.recipes.recipe import Stage
from hpt_trl.settings.values import did_you_mean

# Stage name in a recipe -> module that holds it as STAGE. Imported on use: a stage brings torch and its trainer.
STAGE_MODULES = {
    "pretrain": "hpt_trl.methods.pretrain.stage",
    "sft": "hpt_trl.methods.sft.stage",
    "reward": "hpt_trl.methods.reward.stage",
    "critic": "hpt_trl.methods.critic.stage",
    "dpo": "hpt_trl.methods.dpo.stage",
    "grpo": "hpt_trl.methods.grpo.stage",
    "ppo": "hpt_trl.methods.ppo.stage",
    "hpt": "hpt_trl.methods.hybrid.stage",
    "ref_tuning": "hpt_trl.methods.ref_tuning.stage",
    "rho1": "hpt_trl.methods.rho1.stage",
    "mtp": "hpt_trl.methods.mtp.stage",
    "evaluate": "hpt_trl.methods.evaluate.stage",
    "index": "hpt_trl.methods.index.stage",
}


# What others call a stage.
_ELSEWHERE = {"rm": "reward", "reward_modeling": "reward", "pt": "pretrain", "cpt": "pretrain", "rlhf": "ppo"}


def check_stage(name: str) -> None:
    """Refuses a name that is no stage's.

    Raises:
        UserError: the message gives the nearest name and all names.
    """
    if name not in STAGE_MODULES:
        meant = did_you_mean(_ELSEWHERE.get(name, name[:200]), STAGE_MODULES)
        raise UserError(f"there is no stage `{name[:200]}`.{meant} Stages: {', '.join(sorted(STAGE_MODULES))}.")


def load_stage(name: str) -> Stage:
    """Imports a stage.

    Raises:
        UserError: there is no stage of that name.
    """
    check_stage(name)
    return import_module(STAGE_MODULES[name]).STAGE
