"""faster-coco-eval: COCO's masks and COCO's average precision, in C++. Part of the extra `dense`."""

from __future__ import annotations

from typing import Any

from mixers.registry import InputError


def coco_tools() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError:
        raise InputError("detection needs faster-coco-eval: uv sync --extra dense") from None
    return faster_coco_eval
