"""Rows as CSV text, numbers whole."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from analysis.records import Json


def write_csv(rows: Sequence[Json]) -> str:
    """Rows as CSV text, columns in order of first appearance; None and NaN are empty, floats whole."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_csv_cell(row.get(column)) for column in columns] for row in rows])
    return text.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
