"""The paper's advice on λ (arXiv 2605.19919): where to start, and how far not to go."""

from __future__ import annotations

RMS_RATIO = (0.1, 0.2)
"""Start where RMS(λΔz) / RMS(z) is in this range."""

DISPLACEMENT = 0.8
"""Keep the mean ‖g(z + λΔz) - g(z)‖₂ on the demonstrations below about this."""
