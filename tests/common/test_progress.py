"""Progress goes to stderr: nothing for short work, one plain line every 10 s in a log, a bar on a terminal."""

import io
import sys

from common import progress
from common.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_gets_one_line_every_ten_seconds(capsys, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("svce", total=4, unit="images") as shown:
        for _ in range(3):
            shown({"step": 0})
        shown.advance(2)
        for _ in range(3):
            shown({"step": 0})
    printed = capsys.readouterr()
    assert printed.err == "svce: 2/4 images, 3 steps, 12 s\n" and printed.out == ""


def test_short_work_is_silent(capsys):
    with Progress("svce", total=1) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("svce", total=2, unit="images") as shown:
        shown({})
        shown.advance(2)
    assert "svce" in terminal.getvalue() and "2/2" in terminal.getvalue() and "1 steps" in terminal.getvalue()
