"""Markers of curves, told apart by their form: outlines of small shapes about a point."""

# Outlines of about 7 units across, drawn from the point itself; the odd ones are left empty.
_SHAPES = (
    "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "m-3,-3h6v6h-6z",
    "m0,-3.6l3.4,6h-6.8z",
    "m0,-4l4,4l-4,4l-4,-4z",
    "m-3,-1h2v-2h2v2h2v2h-2v2h-2v-2h-2z",
    "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "m-3,-3h6v6h-6z",
    "m0,3.6l3.4,-6h-6.8z",
)
# Runs that a page can set side by side.
LOOKS = len(_SHAPES)


def marker_path(look: int, x: float, y: float) -> str:
    """The outline of a marker at a place, as part of a path."""
    return f"M{x:g},{y:g}{_SHAPES[look % LOOKS]}"
