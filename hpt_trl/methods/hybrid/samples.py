"""What became of each rollout and its prompt, as columns of the table of completions that TRL logs."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from hpt_trl.data.messages import as_text
from hpt_trl.methods.hybrid.routing import Plan

MODE, DEMONSTRATION = "mode", "demonstration"
SFT, OFF, RL, DROPPED, EVALUATION = "SFT", "off-policy", "RL", "dropped", "evaluation"


def uses_of(plan: Plan) -> list[str]:
    """Of each rollout over all processes, what its prompt is trained on: `SFT` and `off-policy` are its demonstration.

    A rollout that carries no gradient, of a prompt whose demonstration is not trained on, is `dropped`.
    """
    group = plan.solved.size(1)
    uses = []
    for row, dead in enumerate(plan.dead.flatten().tolist()):
        prompt = row // group
        parts = [SFT] if plan.sft[prompt] != 0 else []
        parts += [OFF] if plan.off_advantage[prompt] != 0 else []
        parts += [] if dead else [RL]
        uses.append(" + ".join(parts) or DROPPED)
    return uses


def note_rollouts(columns: Any, modes: list[str] | str, rows: Sequence[dict[str, Any]], demonstration: str) -> None:
    """Adds the columns of a generation batch to TRL's own; all processes call it.

    Args:
        columns: TRL's further columns of that table, name -> values of all processes.
        modes: Of each rollout over all processes, or of every one.
        rows: Of this process, one per rollout.
        demonstration: Their column that holds it.
    """
    texts = gather_object([as_text(row[demonstration]) if row.get(demonstration) else None for row in rows])
    columns[MODE].extend([modes] * len(texts) if isinstance(modes, str) else modes)
    columns[DEMONSTRATION].extend(texts)
