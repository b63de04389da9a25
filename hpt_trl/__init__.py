"""Post-training recipes for language models on Hugging Face's trainers.

The public names are imported on first use: `import hpt_trl` loads neither torch nor transformers, so the command
line can answer `--help` at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpt_trl.version import __version__

_EXPORTS = {
    "ActingTrainer": "hpt_trl.rollouts.acting",
    "Chain": "hpt_trl.displays.chain",
    "HybridPostConfig": "hpt_trl.methods.hybrid.config",
    "HybridPostTrainer": "hpt_trl.methods.hybrid.trainer",
    "LiveCurves": "hpt_trl.displays.live",
    "PPOConfig": "hpt_trl.methods.ppo.config",
    "PPOTrainer": "hpt_trl.methods.ppo.trainer",
    "Rho1Config": "hpt_trl.methods.rho1.config",
    "Rho1Trainer": "hpt_trl.methods.rho1.trainer",
    "Run": "hpt_trl.displays.output",
    "ToolEnvironment": "hpt_trl.environments.tools",
    "TurnEnvironments": "hpt_trl.environments.factory",
    "UserError": "hpt_trl.errors",
    "ValueConfig": "hpt_trl.methods.critic.config",
    "ValueModel": "hpt_trl.models.value_model",
    "ValueTrainer": "hpt_trl.methods.critic.trainer",
    "WeightedMTPConfig": "hpt_trl.methods.mtp.config",
    "WeightedMTPTrainer": "hpt_trl.methods.mtp.trainer",
    "complete": "hpt_trl.displays.completing",
    "load_with_future_heads": "hpt_trl.models.future_heads.model",
    "look": "hpt_trl.displays.looking",
    "run": "hpt_trl.displays.running",
}

__all__ = [
    "ActingTrainer",
    "Chain",
    "HybridPostConfig",
    "HybridPostTrainer",
    "LiveCurves",
    "PPOConfig",
    "PPOTrainer",
    "Rho1Config",
    "Rho1Trainer",
    "Run",
    "ToolEnvironment",
    "TurnEnvironments",
    "UserError",
    "ValueConfig",
    "ValueModel",
    "ValueTrainer",
    "WeightedMTPConfig",
    "WeightedMTPTrainer",
    "__version__",
    "complete",
    "load_with_future_heads",
    "look",
    "run",
]

if TYPE_CHECKING:
    from hpt_trl.displays.chain import Chain
    from hpt_trl.displays.completing import complete
    from hpt_trl.displays.live import LiveCurves
    from hpt_trl.displays.looking import look
    from hpt_trl.displays.output import Run
    from hpt_trl.displays.running import run
    from hpt_trl.environments.factory import TurnEnvironments
    from hpt_trl.environments.tools import ToolEnvironment
    from hpt_trl.errors import UserError
    from hpt_trl.methods.critic.config import ValueConfig
    from hpt_trl.methods.critic.trainer import ValueTrainer
    from hpt_trl.methods.hybrid.config import HybridPostConfig
    from hpt_trl.methods.hybrid.trainer import HybridPostTrainer
    from hpt_trl.methods.mtp.config import WeightedMTPConfig
    from hpt_trl.methods.mtp.trainer import WeightedMTPTrainer
    from hpt_trl.methods.ppo.config import PPOConfig
    from hpt_trl.methods.ppo.trainer import PPOTrainer
    from hpt_trl.methods.rho1.config import Rho1Config
    from hpt_trl.methods.rho1.trainer import Rho1Trainer
    from hpt_trl.models.future_heads.model import load_with_future_heads
    from hpt_trl.models.value_model import ValueModel
    from hpt_trl.rollouts.acting import ActingTrainer


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
