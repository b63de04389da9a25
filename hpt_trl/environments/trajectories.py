"""Rollouts for reading: what both sides said and showed, as JSON lines beside their images."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpt_trl.data.messages import as_text
from hpt_trl.files import valid_json, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

    from hpt_trl.environments.episode import Episode
    from hpt_trl.environments.protocol import Picture

# Where they lie in an output folder; docs/vrag.md has the form of a line.
FOLDER, IMAGES = "trajectories", "images"
# Columns of the data that a page of a trajectory shows.
_COLUMNS = ("answer", "reference_pages", "reference_boxes")


def recorded(episode: "Episode", images: Path | None = None) -> dict[str, Any]:
    """A rollout as it goes through files.

    Args:
        images: folder that gets its images; None leaves them out.

    Returns:
        `completion` (messages of text), `facts`, `measures`, `drawn` (tokens), `turns` and `prompt`.
    """
    return {
        "completion": episode.completion(),
        "facts": episode.facts(),
        "measures": episode.measures(),
        "drawn": episode.drawn,
        "prompt": [{"role": message["role"], "content": as_text([message])} for message in episode.messages],
        "turns": [_turn(turn, images) for turn in episode.record],
    }


def line_of(
    record: dict[str, Any], row: dict[str, Any], rewards: dict[str, float | None], **named: Any
) -> dict[str, Any]:
    """The line of a rollout.

    Args:
        record: of `recorded`.
        row: of the data.
        rewards: by their names.
        named: `id`, `mode` and `step`.
    """
    return {
        **named,
        "prompt": record["prompt"],
        "turns": record["turns"],
        "rewards": rewards,
        "facts": record["facts"],
        "columns": {name: row[name] for name in _COLUMNS if row.get(name) is not None},
    }


def write_lines(folder: Path, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Leaves rollouts in an output folder, in place of those that had the name before."""
    text = "".join(json.dumps(valid_json(line), ensure_ascii=False) + "\n" for line in lines)
    if text:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FOLDER / f"{name}.jsonl", text)


def leave_rollouts(
    folder: Path, episodes: Sequence["Episode"], rewards: Sequence[dict[str, float]], *, mode: str, step: int
) -> None:
    """Leaves rollouts of a training step in an output folder.

    Args:
        rewards: by their names, of each rollout; NaN where one has none.
    """
    lines = [
        line_of(
            recorded(episode, folder / FOLDER / IMAGES),
            episode.row,
            dict(values),
            id=f"{mode}-{step}-{place}",
            mode=mode,
            step=step,
        )
        for place, (episode, values) in enumerate(zip(episodes, rewards, strict=False))
    ]
    write_lines(folder, f"{mode}-{step:06d}", lines)


def _turn(turn: dict[str, Any], images: Path | None) -> dict[str, Any]:
    shown: list[Picture] = turn.get("pictures", [])
    line = {"role": turn["role"], "text": turn["text"]}
    return line | ({"images": [_image(picture, images) for picture in shown]} if turn["role"] == "environment" else {})


def _image(picture: "Picture", images: Path | None) -> dict[str, Any]:
    return {
        "file": None if images is None else f"{IMAGES}/{_saved(picture.image, images)}",
        "name": picture.name,
        "kind": picture.kind,
        "raw_size": list(picture.raw_size or picture.image.size),
        "shown_size": list(picture.image.size),
        "box": None if picture.box is None else list(picture.box),
    }


def _saved(image: "Image", folder: Path) -> str:
    """Saves an image under a name that its pixels give it, once."""
    name = hashlib.blake2b(image.tobytes() + str(image.size).encode(), digest_size=12).hexdigest() + ".png"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}"
        image.save(temporary, format="PNG")
        temporary.replace(folder / name)
    return name
