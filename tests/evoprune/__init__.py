"""Tests of the search, its executors and its run directory."""
