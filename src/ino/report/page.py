"""HTML pages as single files: templates filled by Jinja2, with the style and all pictures in them.

A page opens anywhere without a network. What is on it stands in templates/.
"""

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from ino.system import write_text
from ino.tables import shown


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page, whole or not at all; text among the values is escaped.

    Args:
        path: where the file will be; an existing one is replaced.
        template: name of a file in templates/.
        values: what the template shows.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, _templates().get_template(template).render(values))


def picture_uri(image: UInt8[np.ndarray, "height width 3"], *, lossless: bool = False) -> str:
    """An RGB image as a data URI for <img>: PNG if `lossless`, else JPEG."""
    kind = "png" if lossless else "jpeg"
    written = io.BytesIO()
    Image.fromarray(image).save(written, format=kind, **({} if lossless else {"quality": 90}))
    return _data_uri(f"image/{kind}", written)


def figure_uri(figure: Figure) -> str:
    """A plot as a data URI for <img>, in SVG."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", written)


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ino.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["picture_uri"] = picture_uri
    templates.filters["figure_uri"] = figure_uri
    templates.filters["percent"] = lambda fraction: f"{100 * fraction:.1f}"
    return templates
