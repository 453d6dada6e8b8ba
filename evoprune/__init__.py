"""Evolutionary channel search: a trained convolutional network and a compute budget in, a smaller dense network out."""

from __future__ import annotations
