"""A trajectory as plain text: its prompt, its turns with what the model was shown, and what it earned."""

from hpt_trl.runs.trajectories import Picture, Trajectory, Turn
from hpt_trl.runs.trajectory_pages import mode_of


def trajectory_text(trajectory: Trajectory) -> str:
    """Returns a trajectory as text; of each image there is a line that says what it shows."""
    head = f"Trajectory {trajectory.id}, {mode_of(trajectory)}"
    if trajectory.step is not None:
        head += f", step {trajectory.step}"
    if ended := trajectory.facts.get("ended"):
        head += f"; ended by: {ended}"
    rewards = [f"{name} {'none' if value is None else f'{value:.3g}'}" for name, value in trajectory.rewards.items()]
    return "\n".join(
        [
            head,
            *_prompt(trajectory),
            *(line for number, turn in enumerate(trajectory.turns, start=1) for line in _turn(number, turn)),
            f"rewards: {', '.join(rewards) or 'none'}",
        ]
    )


def _prompt(trajectory: Trajectory) -> list[str]:
    """The last message; of those before it how long they are, as on the page."""
    *before, last = trajectory.prompt or (("prompt", "none"),)
    return [*(f"{role}: ({len(text)} characters)" for role, text in before), f"{last[0]}: {last[1]}"]


def _turn(number: int, turn: Turn) -> list[str]:
    who = "model" if turn.role == "assistant" else "environment"
    images = [f"   [{_shown(image)}]" for image in turn.images]
    return [f"{number}. {who}: {turn.text}".rstrip(), *images]


def _shown(image: Picture) -> str:
    raw, shown = (
        " \N{MULTIPLICATION SIGN} ".join(f"{side:.7g}" for side in size) for size in (image.raw_size, image.shown_size)
    )
    box = "" if image.box is None else f", box {', '.join(f'{side:.7g}' for side in image.box)}"
    return f"{image.kind} {'of ' if image.kind == 'crop' else ''}{image.name}{box}; {raw} pixels, shown as {shown}"
