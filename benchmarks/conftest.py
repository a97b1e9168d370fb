"""The table of what stages cost, at the end of a run of `test_stages.py`."""

import pytest

ROWS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no rows."""
    config.stash[ROWS] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print them."""
    for row in config.stash[ROWS]:
        terminalreporter.write_line(row)
