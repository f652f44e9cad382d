"""ZPRL for Stable-Baselines3: steer a frozen robot policy with reinforcement learning in its bottleneck latent.

>>> import zprl_sb3, gymnasium
>>> "zprl/Push-v0" in gymnasium.registry
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zprl_sb3.lazy import lazy_names
from zprl_sb3.robot_envs import register_envs

if TYPE_CHECKING:
    from zprl_sb3.adapters import open_policy
    from zprl_sb3.adapters.module import SplitPolicy
    from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
    from zprl_sb3.calibration import Calibration, calibrate
    from zprl_sb3.callbacks import SnapshotCallback, SteeringEvalCallback, load_snapshot, save_snapshot
    from zprl_sb3.checkpoint import CheckpointError, load_policy, save_policy
    from zprl_sb3.dppo import DPPO
    from zprl_sb3.openvino import with_openvino
    from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig, SteerablePolicy
    from zprl_sb3.pretrain.attaching import attach_bottleneck
    from zprl_sb3.reinflow import ReinFlow
    from zprl_sb3.sac import SteeringSAC
    from zprl_sb3.training_diagnostics import SteeringDiagnostics
    from zprl_sb3.wrappers import ActionChunk, LatentSteering, LatentSteeringWrapper, VecSteering, make_vec_steering

__version__ = "0.1.0"

# An environment's process needs no torch.
__getattr__ = lazy_names(
    __name__,
    {
        "adapters": ("open_policy",),
        "adapters.module": ("SplitPolicy",),
        "bottleneck": ("Bottleneck", "BottleneckConfig"),
        "calibration": ("Calibration", "calibrate"),
        "callbacks": ("SnapshotCallback", "SteeringEvalCallback", "load_snapshot", "save_snapshot"),
        "checkpoint": ("CheckpointError", "load_policy", "save_policy"),
        "dppo": ("DPPO",),
        "openvino": ("with_openvino",),
        "policy": ("FlowPolicy", "FlowPolicyConfig", "SteerablePolicy"),
        "pretrain.attaching": ("attach_bottleneck",),
        "reinflow": ("ReinFlow",),
        "sac": ("SteeringSAC",),
        "training_diagnostics": ("SteeringDiagnostics",),
        "wrappers": ("ActionChunk", "LatentSteering", "LatentSteeringWrapper", "VecSteering", "make_vec_steering"),
    },
)

__all__ = [
    "ActionChunk",
    "DPPO",
    "Bottleneck",
    "BottleneckConfig",
    "Calibration",
    "CheckpointError",
    "FlowPolicy",
    "FlowPolicyConfig",
    "LatentSteering",
    "LatentSteeringWrapper",
    "ReinFlow",
    "SnapshotCallback",
    "SplitPolicy",
    "SteerablePolicy",
    "SteeringDiagnostics",
    "SteeringEvalCallback",
    "SteeringSAC",
    "VecSteering",
    "attach_bottleneck",
    "calibrate",
    "load_policy",
    "load_snapshot",
    "make_vec_steering",
    "open_policy",
    "save_policy",
    "save_snapshot",
    "with_openvino",
]

register_envs()
