"""HTML pages that work offline in one file, and how any file is written: whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.store import naming_full_disks

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


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and rename over it: a reader sees the old file or the new one, never half.

    Raises:
        DiskFull: there is no space for it; the old file is untouched.
    """
    with naming_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            temporary.chmod(0o644)  # mkstemp makes it private; a report is there to be shared
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise
