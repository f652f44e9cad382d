"""What a learned steering depends on: λ, chunk, discount, base policy, and what is steered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Scale = float | tuple[float, ...]


@dataclass(frozen=True)
class SteeringSpec:
    """What a learned steering actor depends on. Saved with the model and compared when an environment is attached.

    :param kind: Name of the steering, e.g. ``"latent"``
    :param scale: λ, or one of each dimension
    :param chunk: h, env steps per chunk
    :param gamma: Discount per **env step**
    :param policy: Fingerprint of the frozen base policy
    """

    kind: str
    scale: Scale
    chunk: int
    gamma: float
    policy: str

    @property
    def chunk_discount(self) -> float:
        """γ^h, the discount between **chunks**. The only place where the two clocks meet."""
        return float(self.gamma**self.chunk)

    @property
    def warm_up_std(self) -> float:
        """Deviation of the random Δ with which the base policy acts: of noise that starts from 0, 1 / λ; else 0."""
        return 1.0 / float(self.scale) if self.kind == "noise" and not isinstance(self.scale, tuple) else 0.0

    def difference(self, other: SteeringSpec) -> tuple[str, Any, Any] | None:
        """Return the first difference in words and both values, or None if there is none."""
        names = {
            "kind": "steering",
            "scale": "scale (λ)",
            "chunk": "chunk length",
            "gamma": "gamma per env step",
            "policy": "base policy (fingerprint)",
        }
        for name, words in names.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return words, mine, theirs
        return None

    def require_same(self, other: SteeringSpec) -> None:
        """Raise a ValueError that names the first difference between a saved model and an environment."""
        if difference := self.difference(other):
            words, mine, theirs = difference
            raise ValueError(
                f"The model was trained with {words} {mine}, the environment has {theirs}. "
                f"Wrap the environment with the model's {words}, or train a new model"
            )
