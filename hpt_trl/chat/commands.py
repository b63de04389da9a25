"""The command `hpt-trl chat`: its words, and what is found wrong with them before torch is imported."""

import argparse
import sys
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.help_text import HelpText, path_word

EXAMPLES = """\
While it talks: /clear begins anew, /exit (or Ctrl-D, Ctrl-C) ends. Ctrl-C stops
an answer. A model without chat template continues each text by itself, in the
prompt template of its recipe.

examples:
  hpt-trl chat outputs/quickstart
  hpt-trl chat outputs/quickstart --prompt "What is 12 + 7 + 30?"
  hpt-trl chat me/my-model
  hpt-trl chat outputs/rlhf/ppo --temperature 0.7 --max_new_tokens 200
  hpt-trl chat outputs/vrag-tiny --image page.png --prompt "What was sold most?\""""


def add_commands(commands: Any) -> None:
    """Adds the command to the parser's."""
    chat = commands.add_parser(
        "chat",
        help="talk to the model that a run has left",
        description="Talk to the model of an output folder, also an adapter, whose base is loaded below it.",
        epilog=EXAMPLES,
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    chat.add_argument(
        "folder",
        type=path_word,
        metavar="OUTPUT_DIR",
        help="output folder of a run, one of its checkpoints, or a Hub id",
    )
    chat.add_argument("--prompt", metavar="TEXT", help="answer this one text, and end")
    chat.add_argument(
        "--image", type=path_word, metavar="FILE", help="image of the first text, for a vision-language model"
    )
    chat.add_argument("--system", metavar="TEXT", help="system message (that of the run's recipe)")
    chat.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="longest answer, in tokens (256)")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    chat.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws above temperature 0 (0)")


def chat(options: argparse.Namespace) -> None:
    """Talks to a model until the user ends it, or answers one text.

    Raises:
        UserError: an option is out of range, or the folder holds no model that writes text.
    """
    from hpt_trl.chat.found import find_chat_model

    if options.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens: {options.max_new_tokens} is not allowed; write 1 or more.")
    if not 0 <= options.temperature < float("inf"):
        raise UserError(f"--temperature: {options.temperature:g} is not allowed; write 0 or more.")
    found = find_chat_model(options.folder)
    if options.image is not None:
        _check_image(options.image, found.sees_images, options.folder)
    print(f"Loading {options.folder} ...", file=sys.stderr, flush=True)
    from hpt_trl.chat.talking import open_chat, talk

    opened = open_chat(found, options)
    if options.prompt is None:
        talk(opened, options.image)
    else:
        opened.answer(options.prompt, options.image)


def _check_image(image: str, sees_images: bool, folder: str) -> None:
    if not sees_images:
        raise UserError(f"--image: {folder} holds a model of text alone; drop it.")
    if not Path(image).is_file():
        raise UserError(f"--image: there is no file {image}.")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError("--image needs pillow: pip install 'hpt-trl[vlm]'.") from error
    try:
        with Image.open(image) as opened:
            opened.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--image: {image} cannot be read as an image: {error}.") from error
