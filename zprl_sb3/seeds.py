"""Seeds of episodes, so that training never meets an episode of an evaluation."""

from __future__ import annotations

import numpy as np

EVAL_SEED = 50_000  # of the episodes of the learning curve
FINAL_SEED = 100_000  # of those of final evaluations, which nothing was chosen by
FIRST_TRAINING_SEED = 2**32  # evaluations use smaller ones


def training_seed(seed: int, chunks: int = 0) -> int:
    """Return the seed of the first environment to train in; the k-th one's is larger by k.

    Other runs, and a run that goes on, get seeds far from these: neighbours would share nearly all layouts.

    :param seed: Of the run
    :param chunks: After which it goes on
    """
    return FIRST_TRAINING_SEED + int(np.random.SeedSequence((seed, chunks)).generate_state(1)[0])
