"""HTML pages that work offline in one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.drawing import Drawing

NO_BREAK = "\N{NO-BREAK SPACE}"
TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> str:
    """Fill in a template of `templates/`; text is escaped, a name that is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["keep_together"] = keep_together
    return environment.get_template(template).render(**content)


def keep_together(text: str) -> str:
    """No line break inside ``95 %``, ``p < 0.001`` or ``[+0.40, +2.24]``."""
    return re.sub(r"(?<=\d) (?=%)|(?<=\bp) (?=[<=])|(?<=[<=]) (?=\d)|(?<=,) (?=[^\s\]]+\])", NO_BREAK, text)


def inline_svg(drawing: Drawing) -> str:
    """The figure's SVG for use inside a page: no XML header, ids unique to the figure, any size."""
    svg = drawing.files["svg"].decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{drawing.name}-", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{drawing.title}">{rest}'
