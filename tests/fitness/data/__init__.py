"""Tests of fitness.data."""
