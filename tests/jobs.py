"""Running a job of the pipeline in this process."""

import sys

import pytest


def run(monkeypatch, module, *arguments):
    """`python -m module arguments`."""
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    module.main()


def failing(monkeypatch, capsys, module, *arguments):
    """The one line with which it ends, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, module, *arguments)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
    return said[0]
