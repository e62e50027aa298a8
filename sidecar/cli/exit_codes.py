"""The exit codes of all commands. 0 is success."""

CHECK_SAYS_NO = 1
"""A check or the gate failed, or workers were lost."""
BAD_INPUT = 2
"""Wrong usage or bad input; one line on standard error says what it is."""
INTERRUPTED = 130
"""Ctrl-C."""


def of_gate(verdict: str) -> int:
    """The exit code of a command that has published a checkpoint with this verdict."""
    return CHECK_SAYS_NO if verdict in ("unstable", "incompatible") else 0
