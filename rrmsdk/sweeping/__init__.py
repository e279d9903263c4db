"""Choosing a hyper-parameter: train each value, screen on validation, judge the best on test."""

from __future__ import annotations

from rrmsdk.sweeping.sweep import sweep

__all__ = ["sweep"]
