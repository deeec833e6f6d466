"""pytest's side of the conformance kit: the options, when the kit is collected, and its table. Imports no torch.

    pytest --explainer package.module:function

runs the kit alone, unless paths are given; without `--explainer` the kit is not collected.
"""

from pathlib import Path

import pytest

KIT = Path(__file__).parent / "test_kit.py"
SETTINGS = ("strengths", "classifier", "untargeted")


def numbers(text: str) -> tuple[float, ...]:
    """`"0.5,1,2"` as a tuple. Raises ValueError for anything else."""
    return tuple(float(part) for part in text.split(","))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance of a counterfactual method (comparison/conformance/README.md)")
    group.addoption(
        "--explainer", metavar="MODULE:FUNCTION", help="the method: a function that keeps common/explain.py"
    )
    group.addoption(
        "--strengths",
        type=numbers,
        metavar="A,B,...",
        help="its path (default: the function's own default or 0.5,1,2,4)",
    )
    group.addoption(
        "--classifier",
        metavar="MODULE:BUILD",
        help="for a method that explains a classifier of its own: a function without arguments that returns it",
    )
    group.addoption(
        "--untargeted", action="store_true", help="the method asks what the seen class needs, and knows no target"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("explainer"):
        from comparison.conformance.subject import imported  # with torch, and only now

        for option in ("explainer", "classifier"):
            if config.getoption(option):
                imported(option, config)
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(KIT)]
        return
    for name in SETTINGS:
        if config.getoption(name):
            raise pytest.UsageError(f"--{name}: says how a method is tested; name the method by --explainer")


def pytest_terminal_summary(terminalreporter) -> None:
    """What the kit measured, and what it did not ask and why."""
    found = (terminalreporter.getreports(outcome) for outcome in ("passed", "failed", "skipped"))
    reports = [report for reports in found for report in reports if Path(report.fspath).name == KIT.name]
    reports.sort(key=lambda report: report.location[1])
    measured = [(_name(report), *row) for report in reports for row in report.user_properties]
    if measured:
        terminalreporter.section(f"measured on {terminalreporter.config.getoption('explainer')}")
        for test, name, value in measured:
            shown = value if isinstance(value, str) else f"{value:.3g}"
            terminalreporter.line(f"{test:<18}{name:<66}{shown}")
    unasked = [(_name(report), report.longrepr[2]) for report in reports if report.skipped]
    if unasked:
        terminalreporter.section("not asked")
        for test, reason in unasked:
            terminalreporter.line(f"{test:<18}{reason.removeprefix('Skipped: ')}")


def _name(report: pytest.TestReport) -> str:
    return report.nodeid.rpartition("::test_")[2]
