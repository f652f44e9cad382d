"""Gymnasium and VecEnv wrappers: action chunks, seeded episodes, steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zprl_sb3.lazy import lazy_names

if TYPE_CHECKING:
    from zprl_sb3.wrappers.action_chunk import ActionChunk, SimulationError
    from zprl_sb3.wrappers.episode_video import EpisodeVideo
    from zprl_sb3.wrappers.seeded_episodes import SeededEpisodes
    from zprl_sb3.wrappers.steering import EmbeddingSteering, LatentSteering, Steering, SteeringSpec
    from zprl_sb3.wrappers.steering_wrapper import LatentSteeringWrapper, SteeringWrapper
    from zprl_sb3.wrappers.vec_steering import VecSteering, find_spec, make_vec_steering

# An environment's process needs no torch.
__getattr__ = lazy_names(
    __name__,
    {
        "action_chunk": ("ActionChunk", "SimulationError"),
        "episode_video": ("EpisodeVideo",),
        "seeded_episodes": ("SeededEpisodes",),
        "steering": ("EmbeddingSteering", "LatentSteering", "Steering", "SteeringSpec"),
        "steering_wrapper": ("LatentSteeringWrapper", "SteeringWrapper"),
        "vec_steering": ("VecSteering", "find_spec", "make_vec_steering"),
    },
)

__all__ = [
    "ActionChunk",
    "EmbeddingSteering",
    "EpisodeVideo",
    "LatentSteering",
    "LatentSteeringWrapper",
    "SeededEpisodes",
    "SimulationError",
    "Steering",
    "SteeringSpec",
    "SteeringWrapper",
    "VecSteering",
    "find_spec",
    "make_vec_steering",
]
