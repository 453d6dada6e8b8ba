"""Tests of search_spaces.models."""
