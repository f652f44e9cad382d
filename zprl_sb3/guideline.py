"""The paper's advice on λ (arXiv 2605.19919): where to start, and how far not to go."""

from __future__ import annotations

from dataclasses import dataclass

RMS_RATIO = (0.1, 0.2)
"""Start where RMS(λΔz) / RMS(z) is in this range."""

DISPLACEMENT = 0.8
"""Keep the mean ‖g(z + λΔz) - g(z)‖₂ on the demonstrations below about this."""

TOLERANCE = 1.25
"""By which factor the advice may be missed before anyone is warned: it is where to start, no border."""


@dataclass
class Guard:
    """Tells once, when a figure has been beyond a limit for long without interruption, and again after the next time.

    :param limit: The limit
    :param above: Whether beyond is above it, or below it
    :param patience: How long is long, in chunks
    """

    limit: float
    above: bool
    patience: int
    _beyond: int = 0
    _told: bool = False

    def is_due(self, value: float, chunks: int) -> bool:
        """Return whether it is time to tell.

        :param value: The figure
        :param chunks: Over which it was taken
        """
        if not (value > self.limit if self.above else value < self.limit):
            self._beyond, self._told = 0, False
            return False
        self._beyond += chunks
        due = self._beyond >= self.patience and not self._told
        self._told = self._told or due
        return due
