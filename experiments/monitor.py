"""What is shown while trials run: a line per running trial on a terminal, a line per event elsewhere."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from experiments.launch import finished
from experiments.store import Store, TrialFolder

REDRAW_EVERY = 0.5  # seconds, on a terminal
TELL_EVERY = 30.0  # seconds, elsewhere
BAR = 20  # characters
LINES = 10  # of running trials on a terminal; the summary counts the rest


class Monitor:
    """Watches the folders of trials and says how far they are.

    Args:
        labels: what to call each trial, by its id.
        store: where they are.
        out: where to print; standard error if None.
    """

    def __init__(self, labels: Mapping[str, str], store: Store, out: TextIO | None = None) -> None:
        self._labels, self._store, self._out = labels, store, out or sys.stderr
        self._finished = {trial_id for trial_id in self._labels if finished(store.folder(trial_id))}
        self._durations: list[float] = []
        self._total = len(self._labels)
        self._drawn = 0
        self._next = 0.0

    def __call__(self) -> None:
        """Look, and print if it is time."""
        now = time.monotonic()
        for trial_id in self._labels:
            if trial_id not in self._finished and finished(self._store.folder(trial_id)):
                self._finished.add(trial_id)
                self._tell(trial_id)
        if now < self._next:
            return
        if self._out.isatty():
            self._next = now + REDRAW_EVERY
            self._redraw()
        else:
            if self._next:
                print(self._summary(self._running()), file=self._out, flush=True)
            self._next = now + TELL_EVERY

    def close(self) -> None:
        """Clear the progress lines."""
        self._erase()

    def _tell(self, trial_id: str) -> None:
        folder = self._store.folder(trial_id)
        result = folder.result()
        if result is None:
            return
        seconds = folder.timing().get("train_seconds", 0.0)
        self._durations.append(seconds)
        metrics = result["metrics"]
        # which may have numbers that validation has not, and the other way round
        test = metrics.get("test", {})
        main = {name: test[name] for name in metrics.get("validation", {}) if name in test}
        scores = ", ".join(f"{name} {value:.4g}" for name, value in main.items())
        what = f"test {scores}" if result["status"] == "ok" else result["status"]
        self._erase()
        count = f"{len(self._finished)}/{self._total}"
        print(
            f"{count:>7}  {self._labels[trial_id]:<28} {what} ({_clock(seconds)})", file=self._out, flush=True
        )

    def _running(self) -> list[tuple[str, dict[str, Any]]]:
        """Label and progress of the trials that report any, nearest to their end first."""
        found = []
        for trial_id, label in self._labels.items():
            if trial_id in self._finished:
                continue
            progress = running_progress(self._store.folder(trial_id))
            if progress is not None:
                found.append((label, progress))
        return sorted(found, key=lambda item: -item[1]["fraction"])

    def _redraw(self) -> None:
        running = self._running()
        lines = [progress_line(label, progress) for label, progress in running[:LINES]]
        self._erase()
        for line in [*lines, self._summary(running)]:
            print(line, file=self._out)
        self._drawn = len(lines) + 1
        self._out.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _summary(self, running: Sequence[tuple[str, dict[str, Any]]]) -> str:
        left = self._seconds_left(running)
        eta = f"about {_clock(left)} left" if left is not None else "starting"
        hosts = {elsewhere(progress) for _, progress in running} - {""}
        where = f" ({hosts.pop() if len(hosts) == 1 else f'on {len(hosts)} other machines'})" if hosts else ""
        return f"{len(self._finished)} of {self._total} trials finished, {len(running)} running{where}, {eta}"

    def _seconds_left(self, running: Sequence[tuple[str, dict[str, float]]]) -> float | None:
        rates = [p["seconds"] / p["fraction"] for _, p in running if p["fraction"] > 0]
        known = self._durations + rates
        if not known:
            return None
        typical = sum(known) / len(known)
        waiting = self._total - len(self._finished) - len(running)
        under_way = sum(typical * (1 - p["fraction"]) for _, p in running)
        return (under_way + waiting * typical) / max(1, len(running))


def running_progress(folder: TrialFolder) -> dict[str, Any] | None:
    """How far a trial is that somebody works on now; what a killed process left behind does not count."""
    progress = folder.progress()
    at_work = progress is not None and (not folder.is_free() or folder.runs_elsewhere())
    return progress if at_work else None


def progress_line(label: str, progress: dict[str, Any]) -> str:
    """One line for a running trial."""
    filled = round(BAR * progress["fraction"])
    left = progress["seconds"] * (1 / progress["fraction"] - 1) if progress["fraction"] > 0 else None
    eta = f"{_clock(left)} left" if left is not None else "starting"
    bar = "#" * filled + "." * (BAR - filled)
    where = f" {elsewhere(progress)}".rstrip()
    return f"  {label:<28} {bar} epoch {progress['epoch']:>3}/{progress['epochs']} {eta}{where}"


def elsewhere(progress: dict[str, Any]) -> str:
    """`on HOST` of a trial that runs on another machine, which may have to be waited for; else empty."""
    return "" if progress["host"] == socket.gethostname() else f"on {progress['host']}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
