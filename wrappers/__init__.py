"""Gymnasium and VecEnv wrappers: action chunks, seeded episodes, steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zprl_sb3.lazy import lazy_names

if TYPE_CHECKING:
    from zprl_sb3.wrappers.action_chunk import ActionChunk, SimulationError
    from zprl_sb3.wrappers.baseline_steerings import (
        ActionSteering,
        EmbeddingSteering,
        NoiseSteering,
        WeightSteering,
    )
    from zprl_sb3.wrappers.episode_video import EpisodeVideo
    from zprl_sb3.wrappers.seeded_episodes import SeededEpisodes
    from zprl_sb3.wrappers.spec import SteeringSpec
    from zprl_sb3.wrappers.steering import LatentSteering, Steering
    from zprl_sb3.wrappers.steering_wrapper import (
        ActionSteeringWrapper,
        EmbeddingSteeringWrapper,
        LatentSteeringWrapper,
        NoiseSteeringWrapper,
        SteeringWrapper,
        WeightSteeringWrapper,
    )
    from zprl_sb3.wrappers.vec_steering import VecSteering, find_spec, find_steering, make_vec_steering

# An environment's process needs no torch.
__getattr__ = lazy_names(
    __name__,
    {
        "action_chunk": ("ActionChunk", "SimulationError"),
        "baseline_steerings": ("ActionSteering", "EmbeddingSteering", "NoiseSteering", "WeightSteering"),
        "episode_video": ("EpisodeVideo",),
        "seeded_episodes": ("SeededEpisodes",),
        "spec": ("SteeringSpec",),
        "steering": ("LatentSteering", "Steering"),
        "steering_wrapper": (
            "ActionSteeringWrapper",
            "EmbeddingSteeringWrapper",
            "LatentSteeringWrapper",
            "NoiseSteeringWrapper",
            "SteeringWrapper",
            "WeightSteeringWrapper",
        ),
        "vec_steering": ("VecSteering", "find_spec", "find_steering", "make_vec_steering"),
    },
)

__all__ = [
    "ActionChunk",
    "ActionSteering",
    "ActionSteeringWrapper",
    "EmbeddingSteering",
    "EmbeddingSteeringWrapper",
    "EpisodeVideo",
    "LatentSteering",
    "LatentSteeringWrapper",
    "NoiseSteering",
    "NoiseSteeringWrapper",
    "SeededEpisodes",
    "SimulationError",
    "Steering",
    "SteeringSpec",
    "SteeringWrapper",
    "VecSteering",
    "WeightSteering",
    "WeightSteeringWrapper",
    "find_spec",
    "find_steering",
    "make_vec_steering",
]
