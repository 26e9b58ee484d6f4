"""The figure of docs/layers.md: layers from the text to the disk, and who stands where. An SVG file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from he_client.layers.catalogue import LAYERS, Place

WIDTH, LEFT, RIGHT = 1180, 12, 872  #: of the drawing; of its bands; of the column of who stands there
BOX_WIDTH, BOX_HEIGHT, GAP, COLUMNS = 274, 34, 8, 3
TITLE_HEIGHT, BAND_GAP = 26, 12
COLOURS = {
    Place.TEXT: "#dff0d8",
    Place.CLIENT: "#dff0d8",
    Place.NETWORK: "#fcf3cf",
    Place.SERVER: "#f8d7d0",
    Place.DISK: "#f8d7d0",
}
#: Lines of who stands at a place.
STANDING = {
    Place.TEXT: ("who embeds, stores or is shown a text", "who gets vectors or models"),
    Place.CLIENT: ("holders of the key, writers or not", "who sees scores", "everything that a server sends"),
    Place.NETWORK: ("who listens, or stands in between",),
    Place.SERVER: (
        "callers, other tenants",
        "its operator, or who has taken it over:",
        "these layers do not bind them",
    ),
    Place.DISK: ("a thief of the disk or a backup",),
}


def drawing() -> str:
    """The file."""
    body: list[str] = []
    top = LEFT
    for place in Place:
        titles = [one.title for one in LAYERS.values() if one.place is place]
        height = _height(titles, STANDING[place])
        body += _band(place, titles, top, height)
        top += height + BAND_GAP
        if place is Place.CLIENT:  # what is above holds keys and plaintext
            body.append(
                f'<line x1="{LEFT}" y1="{top + 4}" x2="{WIDTH - LEFT}" y2="{top + 4}" stroke="#000" stroke-width="2"/>'
            )
            body.append(_text("keys and plaintext stay above this line", LEFT + GAP, top + 22, "font-style='italic'"))
            top += 34
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>', *body, "</svg>"]) + "\n"


def _height(titles: list[str], standing: tuple[str, ...]) -> int:
    rows = -(-len(titles) // COLUMNS)
    return TITLE_HEIGHT + max(rows * (BOX_HEIGHT + GAP), 18 * len(standing)) + GAP


def _band(place: Place, titles: list[str], top: int, height: int) -> Iterator[str]:
    yield f'<rect x="{LEFT}" y="{top}" width="{WIDTH - 2 * LEFT}" height="{height}" rx="6" fill="{COLOURS[place]}"/>'
    yield _text(place.value, LEFT + GAP, top + 18, "font-weight='bold'")
    for number, title in enumerate(titles):
        row, column = divmod(number, COLUMNS)
        x = LEFT + GAP + column * (BOX_WIDTH + GAP)
        y = top + TITLE_HEIGHT + row * (BOX_HEIGHT + GAP)
        yield f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="#fff" stroke="#888"/>'
        yield _text(title, x + BOX_WIDTH // 2, y + 21, "text-anchor='middle' font-size='11'")
    for number, line in enumerate(STANDING[place]):
        yield _text(line, RIGHT + GAP, top + TITLE_HEIGHT + 14 + 18 * number, "")


def _text(text: str, x: int, y: int, style: str) -> str:
    return f'<text x="{x}" y="{y}"{" " + style if style else ""}>{escape(text)}</text>'
