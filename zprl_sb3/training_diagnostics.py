"""SB3 callback: what steering does while it is learned, and advice where it leaves the paper's guideline for long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from zprl_sb3.diagnostics import Array, steering_diagnostics
from zprl_sb3.guideline import DISPLACEMENT, RMS_RATIO, TOLERANCE, Guard
from zprl_sb3.latents import LatentGaussian, offline_latents, rms
from zprl_sb3.returns import Episodes, first_values
from zprl_sb3.wrappers import LatentSteering, find_spec, find_steering

SATURATED = 0.95  # |Δz| from which on it counts as at its end


class SteeringDiagnostics(BaseCallback):
    """Log under ``rollout/`` what the **explored** Δz do; evaluations log what the actor's mean does, ``steering/``.

    Of steered chunks (those of the base policy, with Δz = 0, are left out):

    - ``rms_z``, ``rms_delta`` (of Δz), ``rms_step`` (of λΔz), ``rms_ratio`` (the last over the first)
    - ``displacement`` ‖g(z + λΔz) - g(z)‖ and ``context_distance`` ‖g(z + λΔz) - c‖, where a latent is steered
    - ``mahalanobis``: distance of z + λΔz to a Ledoit-Wolf Gaussian on the demonstrations' z, where they are given
    - ``saturation``: share of the |Δz| of 0.95 and more

    Of episodes that ended, where the algorithm has critics: ``q_first``, Q at their first chunk by the critics of now;
    ``return_first``, the return that followed, discounted by γ^h per chunk as in the critics' target (where time-outs
    are bootstrapped, it ends with Q at the last observation); ``q_error``, how much more was promised than came.

    Entropy and temperature are SteeringSAC's own: ``train/entropy``, ``train/ent_coef``. For any SB3 algorithm::

        model.learn(100_000, callback=SteeringDiagnostics("runs/push/demos.hdf5"))

    A warning comes once when the guideline (RMS ratio 0.1 to 0.2, displacement below 0.8) has been missed by a quarter
    for ``patience`` chunks without interruption. It is printed, and logged as the text ``rollout/advice``. RMS(z) is
    there that of the demonstrations, if given: in failures that the policy has never seen z can be ten times as large.

    :param demonstrations: What the base policy was pretrained on; None leaves the Mahalanobis distance out
    :param mask: Only the episodes of this mask of the file
    :param log_freq: **Chunks** (all environments) that are put together
    :param patience: **Chunks** beyond the guideline before a warning
    :raises DemonstrationError: When training starts, if the demonstrations cannot be used
    :raises ValueError: Likewise, if they are of another task, or the environment is not steered
    """

    def __init__(
        self,
        demonstrations: str | Path | None = None,
        mask: str | None = None,
        log_freq: int = 1000,
        patience: int = 5000,
    ) -> None:
        super().__init__()
        self.demonstrations, self.mask, self.log_freq = demonstrations, mask, log_freq
        least, most = RMS_RATIO
        self._large = Guard(TOLERANCE * most, above=True, patience=patience)
        self._small = Guard(least / TOLERANCE, above=False, patience=patience)
        self._far = Guard(TOLERANCE * DISPLACEMENT, above=True, patience=patience)
        self._gaussian: LatentGaussian | None = None
        self._rms_offline: float | None = None
        self._steered: list[tuple[Array, Array, Array]] = []
        self._latest = 0

    def _init_callback(self) -> None:
        self._steering, spec = find_steering(self.training_env), find_spec(self.training_env)
        self._episodes = Episodes(self.training_env.num_envs, spec.chunk_discount)
        self._steered, self._latest = [], self.model.num_timesteps
        if self.demonstrations is not None and isinstance(self._steering, LatentSteering):
            z = offline_latents(self.demonstrations, self._steering.policy, self.mask).z
            self._gaussian, self._rms_offline = LatentGaussian(z), rms(z)

    def _on_step(self) -> bool:
        # Callbacks run before the last observation is replaced by the next one.
        observation: Any = self.model._last_obs
        delta = self.locals.get("clipped_actions", self.locals["actions"])
        self._episodes.add(observation, delta, self.locals["rewards"], self.locals["dones"], self.locals["infos"])
        if (moved := delta.any(axis=1)).any():
            self._steered.append((observation["c"][moved], observation["z"][moved], delta[moved]))
        if self.num_timesteps - self._latest >= self.log_freq:
            self._log(self.num_timesteps - self._latest)
            self._latest = self.num_timesteps
        return True

    def _log(self, chunks: int) -> None:
        values = self._of_critics()
        if self._steered:
            values |= (steered := self._of_steering())
            if isinstance(self._steering, LatentSteering):
                self._advise(steered, chunks)
        for name, value in values.items():
            self.logger.record(f"rollout/{name}", value)

    def _of_steering(self) -> dict[str, float]:
        c, z, delta = (np.concatenate(parts) for parts in zip(*self._steered, strict=True))
        self._steered = []
        values = steering_diagnostics(self._steering, {"c": c, "z": z}, delta)
        values |= {"rms_delta": rms(delta), "saturation": float((np.abs(delta) >= SATURATED).mean())}
        if self._gaussian is not None:
            values["mahalanobis"] = float(self._gaussian.distance(z + self._steering.step(delta)).mean())
        return values

    def _of_critics(self) -> dict[str, float]:
        ended = self._episodes.take()
        if not ended or not hasattr(self.model, "critic"):
            return {}
        q, returns = (float(values.mean()) for values in first_values(self.model, ended))
        return {"q_first": q, "return_first": returns, "q_error": q - returns}

    def _advise(self, values: dict[str, float], chunks: int) -> None:
        ratio = values["rms_step"] / (self._rms_offline or values["rms_z"])
        scale, displacement = self._steering.mean_scale, values["displacement"]
        least, most = RMS_RATIO
        size = f"RMS(λΔz)/RMS(z) is {ratio:.2f}, {least} to {most} is advised. If success"
        if self._large.is_due(ratio, chunks):
            self._tell(f"{size} falls, or Q is above the returns, train with a λ of about {scale * most / ratio:.2g}")
        if self._small.is_due(ratio, chunks):
            self._tell(f"{size} rises slowly, train with a λ of about {scale * least / ratio:.2g} or more")
        if self._far.is_due(displacement, chunks):
            self._tell(
                f"λΔz displaces the decoded context by {displacement:.2f}, less than {DISPLACEMENT} is advised: "
                "farther out the policy is asked for what it has never learned. Train with a smaller λ"
            )

    def _tell(self, advice: str) -> None:
        text = f"{advice}. Now λ is {self._steering.mean_scale:.2g}; `zprl calibrate` shows what each λ does"
        print(f"Warning after {self.num_timesteps} chunks: {text}")
        self.logger.record("rollout/advice", text, exclude=("csv", "json", "stdout", "log"))
