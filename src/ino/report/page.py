"""Parts of one HTML file that opens anywhere without a network: pictures and style are within it.

Only markup from values that are given; what is on a page is decided in ino.report.sections.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
from jaxtyping import UInt8
from numpy import ndarray

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Strip:
    """A picture with what it shows: a name, and a remark such as a score."""

    name: str
    image: ndarray
    remark: str = ""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document of these parts."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</main>\n</body>\n</html>\n"
    )


def data_uri(image: UInt8[ndarray, "height width 3"], *, lossless: bool = False) -> str:
    """An RGB image as text that stands in place of an address: PNG if lossless, else JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    kind = "png" if lossless else "jpeg"
    options = [] if lossless else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    written, encoded = cv2.imencode(f".{kind}", bgr, options)
    assert written
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"


def heading(text: str, *, level: int = 2) -> str:
    """A heading; 1 is the page's title."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, soft: bool = False) -> str:
    """A paragraph; `soft` for what may be passed over."""
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def code(lines: Sequence[str]) -> str:
    """Lines to type."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def strips(rows: Sequence[Strip], *, columns: Sequence[str], lossless: bool = False) -> str:
    """Pictures of equal width below each other, names beside them, columns named above."""
    heads = "".join(f"<i>{escape(column)}</i>" for column in columns)
    cells = [f'<span></span><div class="times">{heads}</div>']
    for row in rows:
        remark = f"<small>{escape(row.remark)}</small>" if row.remark else ""
        uri = data_uri(row.image, lossless=lossless)
        cells.append(
            f"<span>{escape(row.name)}{remark}</span>"
            f'<img src="{uri}" alt="{escape(row.name)}" width="{row.image.shape[1]}" '
            f'height="{row.image.shape[0]}">'
        )
    return f'<div class="strips">{"".join(cells)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, chosen: int | None = None) -> str:
    """A table; all columns but the first hold numbers.

    Args:
        heads: names of the columns.
        rows: cells, made by `text_cell`, `number_cell` and `bar_cell`.
        chosen: row to set apart.
    """
    names = [f"<th>{escape(heads[0])}</th>"]
    names += [f'<th class="number">{escape(head)}</th>' for head in heads[1:]]
    lines = [
        f"<tr{' class=chosen' if number == chosen else ''}>{''.join(row)}</tr>"
        for number, row in enumerate(rows)
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(names)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def text_cell(text: str, *, remark: str = "") -> str:
    """A cell with words, and smaller ones below them."""
    small = f"<small>{escape(remark)}</small>" if remark else ""
    return f"<td>{escape(text)}{small}</td>"


def number_cell(text: str) -> str:
    """A cell with a number."""
    return f'<td class="number">{escape(text)}</td>'


def bar_cell(fraction: float) -> str:
    """A cell with a fraction, in percent, and a bar of that length."""
    percent = f"{100 * fraction:.1f}"
    return f'<td class="bar"><span><i style="width:{percent}%"></i><b>{percent}</b></span></td>'
