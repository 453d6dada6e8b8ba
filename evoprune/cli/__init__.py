"""The command `evoprune`."""

from evoprune.cli.app import app, main

__all__ = ["app", "main"]
