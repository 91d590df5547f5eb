"""What a figure was measured on."""

from __future__ import annotations

import platform

import torch


def machine() -> str:
    """One line for a report, for figures taken with one thread."""
    return f"{platform.machine()}, {platform.processor() or 'CPU'}, one thread, torch {torch.__version__}"
