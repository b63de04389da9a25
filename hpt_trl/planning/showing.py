"""Token ids and texts for reading."""

from hpt_trl.data.rendering import Encoded, Encoder

# Characters that are shown of a part of a row.
SHOWN = 240


def pieces(encoded: Encoded, encoder: Encoder, long: int = SHOWN) -> list[tuple[str, bool]]:
    """The ids decoded, in runs of those with and of those without a loss; longer ones than `long` characters cut."""
    found, start = [], 0
    for place in range(1, len(encoded.ids) + 1):
        if place == len(encoded.ids) or encoded.trained[place] != encoded.trained[start]:
            text = cut(str(encoder.tokenizer.decode(encoded.ids[start:place])), long)
            found.append((text, bool(encoded.trained[start])))
            start = place
    return found


def marked(encoded: Encoded, encoder: Encoder, long: int = SHOWN) -> str:
    """The ids decoded, each run of those with a loss between ⟦ and ⟧, runs of more than `long` characters cut."""
    parts = [f"⟦{text}⟧" if trained else text for text, trained in pieces(encoded, encoder, long)]
    return cut("".join(parts), 4 * long)


def cut(text: str, length: int = SHOWN) -> str:
    """A text with its middle left out where it is long."""
    return text if len(text) <= length else f"{text[: length // 2]} […] {text[-length // 2 :]}"
