"""Gymnasium and VecEnv wrappers: action chunks, seeded episodes, steering."""

from zprl_sb3.wrappers.action_chunk import ActionChunk, SimulationError
from zprl_sb3.wrappers.episode_video import EpisodeVideo
from zprl_sb3.wrappers.seeded_episodes import SeededEpisodes
from zprl_sb3.wrappers.steering import EmbeddingSteering, LatentSteering, Steering, SteeringSpec
from zprl_sb3.wrappers.steering_wrapper import LatentSteeringWrapper, SteeringWrapper
from zprl_sb3.wrappers.vec_steering import VecSteering, find_spec, make_vec_steering

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
