"""Kinds of arguments that the command lines of the benchmarks share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Return the whole number in ``text``, at least 1: of none of something nothing can be measured.

    Raises:
        ArgumentTypeError: It is none, or smaller.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, but got {text!r}")
    return number
