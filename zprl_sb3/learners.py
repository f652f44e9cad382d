"""The algorithms that ``zprl train`` runs, by the name that the settings have for them."""

from __future__ import annotations

from stable_baselines3.common.base_class import BaseAlgorithm

from zprl_sb3.dppo import DPPO
from zprl_sb3.dsrl_na import DSRLNA
from zprl_sb3.reinflow import ReinFlow
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.settings import FINE_TUNING

OURS: dict[str, type[BaseAlgorithm]] = {"sac": SteeringSAC, "dsrl_na": DSRLNA, "reinflow": ReinFlow, "dppo": DPPO}
CONTRIB = {"tqc": "TQC", "trpo": "TRPO"}
SOE = "soe"  # no algorithm of SB3's: it explores and retrains, see zprl_sb3.scripts.soe
RETRAINED = "retrained"  # the final policy of what changes weights, in the run's folder
RETRAINS = (SOE, *FINE_TUNING)
"""What leaves such a policy."""
LEARNERS = (*OURS, *CONTRIB, SOE)
ALGORITHMS = ("zprl", "po_dec", "dsrl", "dsrl_na", "resemb", "reinflow", "dppo", "soe", "tqc", "trpo")
"""The methods, each with its settings in ``hyperparams/``."""


def learner(name: str) -> type[BaseAlgorithm]:
    """Return an algorithm: ours, which know of λ and env steps, or one of sb3-contrib's.

    :param name: One of :data:`LEARNERS` but SOE
    :raises ImportError: If it is sb3-contrib's, which is not installed
    """
    if name in OURS:
        return OURS[name]
    try:
        import sb3_contrib
    except ImportError as error:
        raise ImportError(
            f"{CONTRIB[name]} is of sb3-contrib, which is not installed: pip install 'zprl-sb3[contrib]'"
        ) from error
    algorithm: type[BaseAlgorithm] = getattr(sb3_contrib, CONTRIB[name])
    return algorithm
