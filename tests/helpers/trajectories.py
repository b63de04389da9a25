"""Trajectories as a run leaves them, made by hand: pages drawn as images, a crop, and what it earned."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

RAW, SHOWN = (1000, 1400), (500, 700)
# Where the drawn table stands, in pixels of the raw page.
TABLE = (120.0, 500.0, 880.0, 900.0)
CROP = (150.0, 520.0, 700.0, 840.0)


def page_image(name: str) -> Image.Image:
    """A page with a title, lines of text and a table, at the size at which it is shown."""
    image = Image.new("RGB", RAW, "white")
    draw = ImageDraw.Draw(image)
    draw.text((100, 90), f"Annual report, {name}", fill="black", font_size=48)
    for line in range(8):
        draw.text(
            (100, 190 + 34 * line), "Revenue grew in every region of the company. " * 2, fill="#333333", font_size=20
        )
    x1, y1, x2, y2 = TABLE
    for row in range(5):
        y = y1 + row * (y2 - y1) / 5
        draw.rectangle((x1, y, x2, y + (y2 - y1) / 5), outline="black", width=2)
        draw.text((x1 + 20, y + 22), f"20{18 + row}      {7 * row + 5} million", fill="black", font_size=30)
    return image.resize(SHOWN)


def picture(
    name: str, kind: str = "page", file: str | None = None, box: tuple[float, ...] | None = None
) -> dict[str, Any]:
    size = RAW if box is None else (int(box[2] - box[0]), int(box[3] - box[1]))
    shown = SHOWN if box is None else (size[0] // 2, size[1] // 2)
    return {
        "file": file or f"images/{kind}_{name}.png",
        "name": name,
        "kind": kind,
        "raw_size": list(size),
        "shown_size": list(shown),
        "box": None if box is None else list(box),
    }


def trajectory(**changes: Any) -> dict[str, Any]:
    """An episode that searches twice, crops the table and answers."""
    return {
        "id": "eval_after/3",
        "step": 20,
        "mode": "eval_after",
        "prompt": [
            {"role": "system", "content": "Search pages with <search>, look closer with <bbox>, answer with <answer>."},
            {"role": "user", "content": "What was the revenue in 2019?"},
        ],
        "turns": [
            {
                "role": "assistant",
                "text": "<think>I need the report & its table.</think>\n<search>revenue 2019 < 2020</search>",
            },
            {"role": "environment", "text": "Page 1 of the ranking:", "images": [picture("report_1")]},
            {"role": "assistant", "text": "<think>The table is small.</think><bbox>[75, 260, 350, 420]</bbox>"},
            {"role": "environment", "text": "", "images": [picture("report_1", "crop", box=CROP)]},
            {"role": "assistant", "text": "<think>It says 12.</think><answer>12 million</answer>"},
        ],
        "rewards": {"answer_match": 1.0, "action_format": 1.0, "page_ndcg": 0.63093, "crop_overlap": None},
        "facts": {
            "final_answer": "12 million",
            "retrieved_pages": ["report_1"],
            "crops": [{"page": "report_1", "box": list(CROP)}],
            "turns": 3,
            "searches": 1,
            "invalid_actions": 0,
            "ended": "answer",
        },
        "columns": {
            "answer": ["12 million", "12"],
            "reference_pages": ["report_1"],
            "reference_boxes": [{"page": "report_1", "box": list(TABLE)}],
        },
    } | changes


def write_trajectories(output_dir: Path, *lines: dict[str, Any] | str, name: str = "eval.jsonl") -> Path:
    """Writes trajectories with the images of page `report_1`, as a run does; returns their folder."""
    folder = output_dir / "trajectories"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    page = page_image("report_1")
    page.save(folder / "images" / "page_report_1.png")
    page.crop(tuple(round(side / 2) for side in CROP)).save(folder / "images" / "crop_report_1.png")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n")
    return folder
