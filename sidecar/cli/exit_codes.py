"""The exit codes of all commands. 0: done."""

CHECK_SAYS_NO = 1
"""A check or the gate says no."""
BAD_INPUT = 2
"""Usage or bad input: one line on standard error names it."""
INTERRUPTED = 130
"""Ctrl-C."""
