"""Progress on stderr: a bar on a terminal, one plain line every 10 s in a log. Results never go there."""

import sys
import time

INTERVAL = 10.0


class Progress:
    """Counts `total` pieces of work; a context manager, and itself a `callback` for methods.

        with Progress("explain", total=len(images), unit="images") as progress:
            explain(..., callback=progress)     # each call counts one step and keeps the display alive
            progress.advance(len(batch))        # counts finished pieces

    On a terminal a bar shows count, steps and time left; elsewhere one plain line appears at most every 10 s, and none
    for work that is shorter.
    """

    def __init__(self, label: str, total: int, unit: str = "items"):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.steps = 0
        self._bar = None

    def __enter__(self) -> "Progress":
        self._start = self._last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit)]
            columns += [TextColumn("{task.fields[steps]} steps"), TimeElapsedColumn(), TimeRemainingColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.label, total=self.total, steps=0)
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, state: dict) -> None:
        """Count one step of a running method; `state` is left alone."""
        self.steps += 1
        self._show()

    def advance(self, count: int = 1) -> None:
        """Count `count` finished pieces of work."""
        self.done += count
        self._show()

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self.done, steps=self.steps)
            return
        now = time.monotonic()
        if now - self._last >= INTERVAL:
            self._last = now
            steps = f", {self.steps} steps" if self.steps else ""
            seconds = f"{now - self._start:.0f} s"
            print(f"{self.label}: {self.done}/{self.total} {self.unit}{steps}, {seconds}", file=sys.stderr, flush=True)
