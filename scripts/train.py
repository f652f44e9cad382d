"""``zprl train``: steer a frozen policy with SteeringSAC, as ZPRL does or one of its baselines, or fine-tune it.

Settings are in ``hyperparams/ALGO.yml`` by environment id.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from zprl_sb3.background import BackgroundEvaluation
from zprl_sb3.calibration import calibrate, scale_by_spread
from zprl_sb3.callbacks import MODEL, SnapshotCallback, SteeringEvalCallback, load_snapshot, save_snapshot
from zprl_sb3.checkpoint import copy_policy, read_config, save_policy
from zprl_sb3.files import atomic_path, readable, recovered
from zprl_sb3.fine_tuning import FineTuning
from zprl_sb3.interrupts import interrupts_wait
from zprl_sb3.learners import ALGORITHMS, LEARNERS, OURS, RETRAINED, SOE, learner
from zprl_sb3.locks import locked
from zprl_sb3.offline import demonstration_buffer
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.robot_envs import is_real
from zprl_sb3.robot_envs.real.tasks import task_settings
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import (
    add_device,
    add_seed,
    add_settings,
    evaluation_envs,
    find_demonstrations,
    make_arguments,
    new_parser,
    record_run,
    refuse_other_run,
    run_policy,
)
from zprl_sb3.seeds import EVAL_SEED, training_seed
from zprl_sb3.settings import AUTO, MAY_CHANGE, check_options, load_settings
from zprl_sb3.training_curve import TrainingCurveCallback
from zprl_sb3.training_diagnostics import SteeringDiagnostics
from zprl_sb3.wrappers import LatentSteering, SteeringSpec, VecSteering, make_vec_steering
from zprl_sb3.wrappers.baseline_steerings import STEERINGS, training_steering
from zprl_sb3.wrappers.spec import Scale

COUNTS = {"n_envs": 1, "n_timesteps": 1, "eval_freq": 1, "eval_episodes": 0, "save_freq": 0}  # and the least of each
EXAMPLES = """examples:
  zprl train --policy runs/push/policy --output runs/push/zprl-0
  zprl train --policy runs/push/policy --output runs/push/zprl-1 --seed 1 --set scale=0.3 algorithm.batch_size=512
  zprl train --algo po_dec --policy runs/push/policy --output runs/push/po_dec-0

What --algo steers: zprl the bottleneck's latent; po_dec (Policy Decorator) the base policy's chunk of actions; dsrl
the flow's noise, dsrl_na the same with a critic of actions; resemb (ResEmb) the context itself. reinflow tunes all
weights of a flow policy, dppo those of a policy that was pretrained with model=diffusion (or state_diffusion); both
leave the tuned policy in retrained/, as a checkpoint. soe steers nothing: it samples the latent more widely, keeps
successes and retrains the base policy. tqc and trpo are sb3-contrib's, on the latent. With --config the file decides.

The run folder holds the settings, a copy of the policy, snapshots, evaluations.csv, TensorBoard and CSV logs, and at
the end model.zip. The same command again goes on from the last snapshot after a kill or Ctrl-C; with a larger
n_timesteps it goes on with a finished run, too (not of soe, whose rounds divide it)."""


def train(
    policy_path: str | Path, output: str | Path, seed: int, settings: dict[str, Any], device: str = "auto"
) -> Path:
    """Train, or go on with, a run, and return the path of the final model (of SOE, of the retrained policy).

    :param policy_path: Checkpoint of the frozen policy
    :param output: The run's folder
    :param seed: Of networks, environments, noise and replay
    :param settings: As ``hyperparams/zprl.yml`` has them
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises CheckpointError: If the policy cannot be read
    :raises ValueError: If a setting does not fit, or the folder holds another run
    :raises InUse: If another process is at this run
    """
    output, model_path = Path(output), Path(output) / "model.zip"
    _check(settings)
    if settings["learner"] == SOE:
        from zprl_sb3.scripts import soe  # with all of pretraining, which no other run needs

        return soe.explore(policy_path, output, seed, settings, device)
    policy = run_policy(policy_path, settings, device)
    if policy.env_id is None:
        raise ValueError(f"{policy_path} does not say which environment it is for")
    if is_real(policy.env_id) and (settings["n_envs"] > 1 or settings["eval_episodes"]):
        raise ValueError("There is one real robot: it needs n_envs=1 and eval_episodes=0")
    run = {"env_id": policy.env_id, "seed": seed, "policy": policy.fingerprint(), "settings": settings}
    # The λ that was found follows from the settings.
    refuse_other_run(output / "run.yml", run, ignore=["scale", *(f"settings.{name}" for name in MAY_CHANGE)])
    if model_path.is_file() and _trained_chunks(model_path) >= settings["n_timesteps"]:
        print(f"{model_path} is trained already; choose another --output to train anew, or a larger n_timesteps")
        return model_path
    with locked(output):
        _run(policy, policy_path, output, run, device)
    return model_path


def _run(policy: SteerablePolicy, policy_path: str | Path, output: Path, run: dict[str, Any], device: str) -> None:
    settings, seed, model_path = run["settings"], run["seed"], output / "model.zip"
    scale = _scale(policy, policy_path, settings, recovered(output / "snapshot"))
    found = {} if scale == settings["scale"] else {"scale": list(scale) if isinstance(scale, tuple) else scale}
    with ExitStack() as stack:
        evaluation = _evaluation(policy, policy_path, scale, settings)
        if evaluation is not None:
            stack.enter_context(closing(evaluation))
        env = stack.enter_context(closing(_make_env(policy, policy_path, scale, settings, output)))
        if isinstance(evaluation, BackgroundEvaluation):
            evaluation.wait_ready()
        model, evaluations = _prepare(env, evaluation, output, seed, settings, device)
        _add_demonstrations(model, env, settings, policy_path)
        record_run(output / "run.yml", run | found)
        copy_policy(policy_path, output / "policy")
        how = "Fine-tuning" if isinstance(model, FineTuning) else f"Steering with λ = {_words(scale)}"
        print(f"{how}: {policy.env_id}, seed {seed}; everything goes to {output}")
        _learn(model, [evaluations, _diagnostics(policy_path, settings)], settings, output)
    if isinstance(model, FineTuning):
        _export(model, policy_path, output / RETRAINED)
    with atomic_path(model_path) as temporary:
        model.save(temporary)
    print(f"Wrote {model_path} and {output / 'evaluations.csv'}")


def _export(model: FineTuning, policy_path: str | Path, folder: Path) -> None:
    """Write the tuned policy as a checkpoint, if one network makes all of its steps."""
    tuned, base = model.policy.tuned(), read_config(policy_path)
    if tuned is None:
        print("The first steps stay the base policy's: what has two networks is no checkpoint, only model.zip")
        return
    kept = {name: base[name] for name in ("env_kwargs", "dataset_sha256", "demonstrations") if name in base}
    tuned.env_id = base["env_id"]
    save_policy(tuned, folder, **kept, fine_tuned={"with": type(model).__name__, "env_steps": model.env_steps})
    print(f"Wrote {folder}, which `zprl evaluate` takes, and `zprl attach` for a bottleneck")


def _trained_chunks(model_path: Path) -> int:
    with readable(model_path):
        return int(_saved_data(model_path)["num_timesteps"])


def _saved_data(model_path: Path) -> dict[str, Any]:
    data, _, _ = load_from_zip_file(model_path, device="cpu")
    assert data is not None
    return data


def _check(settings: dict[str, Any]) -> None:
    counts = COUNTS if settings["chunk"] is None else COUNTS | {"chunk": 1}  # null: the checkpoint's own
    for name, least in counts.items():
        if not isinstance(value := settings[name], int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    for name, known in (("steering", STEERINGS), ("learner", LEARNERS)):
        if settings[name] not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {settings[name]!r}")
    check_options(settings)


def _scale(policy: SteerablePolicy, policy_path: str | Path, settings: dict[str, Any], snapshot: Path) -> Scale:
    by, auto = settings["scale_by"], settings["scale"] == AUTO
    if by is None and not auto:
        scale: Scale = settings["scale"]
        return scale
    if (snapshot / MODEL).is_file():  # as it was, to the last bit, whatever has become of the demonstrations
        with readable(snapshot):
            spec: SteeringSpec = _saved_data(snapshot / MODEL)["steering_spec"]
            return spec.scale
    file, mask = _demonstrations("scale" if by is None else "scale_by", settings, policy_path)
    if not auto:
        return scale_by_spread(file, policy, settings["scale"], mask)
    print(f"Calibrating λ on {file}")
    return calibrate(policy, file, by is not None, mask).steering_scale


def _demonstrations(name: str, settings: dict[str, Any], policy_path: str | Path) -> tuple[str | Path, str | None]:
    """Return the file that a setting names, or with ``auto`` the policy's own, and the mask of its episodes, if any."""
    if settings[name] != AUTO:
        return settings[name], None
    try:
        return find_demonstrations(policy_path)
    except ValueError as error:
        instead = "a number" if name == "scale" else "a file"
        raise ValueError(
            f"{name}=auto needs the policy's demonstrations: {error}. Or set {name} to {instead}"
        ) from error


def _words(scale: Scale) -> str:
    if not isinstance(scale, tuple):
        return f"{scale:g}"
    return f"{min(scale):.2g} to {max(scale):.2g}, {sum(scale) / len(scale):.2g} on average,"


def _make_env(
    policy: SteerablePolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any], output: Path
) -> VecSteering:
    """Return the environments to train in; a real robot's keeps all episodes in the run's folder."""
    assert policy.env_id is not None
    kept = {"episodes": str(output / "episodes")} if is_real(policy.env_id) else {}
    kwargs = make_arguments(policy_path, kept | settings["env_kwargs"] | settings["train_env_kwargs"])
    steering = training_steering(settings["steering"], policy, scale, settings["sample_latent"])
    return make_vec_steering(
        policy.env_id, steering, settings["n_envs"], settings["gamma"], kwargs, settings["subprocess"]
    )


def _make_eval_env(
    policy: SteerablePolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any]
) -> VecSteering:
    """Return the environments to evaluate in."""
    assert policy.env_id is not None
    kwargs = make_arguments(policy_path, settings["env_kwargs"])
    steering = STEERINGS[settings["steering"]](policy, scale)
    return make_vec_steering(
        policy.env_id,
        steering,
        evaluation_envs(settings),
        settings["gamma"],
        kwargs,
        settings["subprocess"],
        seeded_episodes=True,
    )


def _make_eval_env_beside(policy_path: str | Path, scale: Scale, settings: dict[str, Any], device: str) -> VecSteering:
    """Return the same in another process, with a policy of its own."""
    return _make_eval_env(run_policy(policy_path, settings, device), policy_path, scale, settings)


def _evaluation(
    policy: SteerablePolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any]
) -> VecSteering | BackgroundEvaluation | None:
    if not settings["eval_episodes"]:
        return None
    if not settings["eval_beside"]:
        return _make_eval_env(policy, policy_path, scale, settings)
    return BackgroundEvaluation(partial(_make_eval_env_beside, policy_path, scale, settings, str(policy.device)))


def _prepare(
    env: VecSteering,
    eval_env: VecSteering | BackgroundEvaluation | None,
    output: Path,
    seed: int,
    settings: dict[str, Any],
    device: str,
) -> tuple[BaseAlgorithm, BaseCallback]:
    snapshot = recovered(output / "snapshot")
    if snapshot.is_dir():
        with readable(snapshot):
            model = load_snapshot(learner(settings["learner"]), snapshot, env, device=device)
        if isinstance(model, OffPolicyAlgorithm):
            _resize_buffer(model, settings)
        env.seed(training_seed(seed, model.num_timesteps))  # new episodes, not those from the beginning again
        print(f"Going on from {_progress(model)}, saved in {snapshot}")
    else:
        model = _new_model(env, seed, settings, device)
        env.seed(training_seed(seed))
    # A resumed run gets log files of its own: SB3 opens them for writing anew.
    model.set_logger(configure(str(output / "logs" / f"from_{model.num_timesteps}"), ["csv", "tensorboard"]))
    if eval_env is None:
        return model, TrainingCurveCallback(output / "evaluations.csv", output / "episodes.csv")
    return model, SteeringEvalCallback(
        eval_env, output / "evaluations.csv", settings["eval_freq"], settings["eval_episodes"], seed=EVAL_SEED
    )


def _progress(model: BaseAlgorithm) -> str:
    if isinstance(model, (SteeringSAC, FineTuning)):
        return f"{model.env_steps} env steps"
    return f"{model.num_timesteps} chunks"


def _add_demonstrations(
    model: BaseAlgorithm, env: VecSteering, settings: dict[str, Any], policy_path: str | Path
) -> None:
    if settings["demonstrations"] is not None and isinstance(model, SteeringSAC):
        file, mask = _demonstrations("demonstrations", settings, policy_path)
        kwargs = settings["algorithm"]["replay_buffer_kwargs"]
        sparse = model.critic.bounded
        model.learn_from(
            demonstration_buffer(file, env.steering, settings["gamma"], sparse, model.device, mask, **kwargs)
        )


def _capacity(settings: dict[str, Any]) -> int:
    # A larger buffer would never be filled, and every snapshot would write it.
    return int(min(settings["algorithm"]["buffer_size"], settings["n_timesteps"] + settings["n_envs"]))


def _resize_buffer(model: OffPolicyAlgorithm, settings: dict[str, Any]) -> None:
    """Make room for a run that goes on for longer than it was meant to."""
    buffer, capacity = model.replay_buffer, _capacity(settings)
    if isinstance(buffer, SteeringReplayBuffer) and buffer.buffer_size < capacity:
        model.replay_buffer = buffer.moved(buffer.device, capacity)
        model.buffer_size = capacity


def _new_model(env: VecSteering, seed: int, settings: dict[str, Any], device: str) -> BaseAlgorithm:
    algorithm: dict[str, Any] = copy.deepcopy(settings["algorithm"])  # SB3 adds to policy_kwargs
    if "buffer_size" in algorithm:
        algorithm["buffer_size"] = _capacity(settings)
    make: Any = learner(settings["learner"])
    if settings["learner"] not in OURS:  # others know no chunks: one is a step of theirs
        algorithm["gamma"] = env.steering_spec.chunk_discount
    try:
        model: BaseAlgorithm = make("MultiInputPolicy", env, seed=seed, device=device, **algorithm)
        return model
    except TypeError as error:  # policy_kwargs are open: a mistake in them shows only here
        raise ValueError(f"algorithm: {error}") from error


def _diagnostics(policy_path: str | Path, settings: dict[str, Any]) -> SteeringDiagnostics:
    """Return what logs how steering does while it learns, with the demonstrations that can be found."""
    if settings["steering"] != LatentSteering.kind:
        return SteeringDiagnostics()
    named = [settings[name] for name in ("demonstrations", "scale_by") if settings[name] not in (None, AUTO)]
    try:
        file, mask = (named[0], None) if named else find_demonstrations(policy_path)
    except ValueError as error:
        print(f"Without demonstrations the logs have no Mahalanobis distance ({error})")
        return SteeringDiagnostics()
    print(f"The logs compare z̃ with the demonstrations in {file}")
    return SteeringDiagnostics(file, mask)


def _learn(model: BaseAlgorithm, watching: list[BaseCallback], settings: dict[str, Any], output: Path) -> None:
    snapshot = output / "snapshot"
    # Where nothing remains, only the last evaluation may be missing.
    remaining = max(0, settings["n_timesteps"] - model.num_timesteps)
    try:
        with interrupts_wait() as interrupts, _progress_bar() as progress:
            callbacks = [SnapshotCallback(snapshot, settings["save_freq"], interrupts), *watching, progress]
            model.learn(remaining, callbacks, reset_num_timesteps=False)
            save_snapshot(model, snapshot)
    except BaseException as error:
        # A NaN from the simulator, a full disk: what was learned so far must not be lost. After Ctrl-C it is saved.
        if isinstance(error, Exception):
            _rescue(model, snapshot)
        goes_on = f"; the same command goes on from {snapshot}" if snapshot.is_dir() else ""
        print(f"\nStopped at {_progress(model)} by {type(error).__name__}{goes_on}", file=sys.stderr)
        raise


@contextmanager
def _progress_bar() -> Iterator[ProgressBarCallback]:
    """Yield SB3's progress bar, and close it however training ends.

    SB3 leaves it open after an error. The thread that draws it may then hold its lock for ever when Python ends, and
    Python waits for that lock.
    """
    progress = ProgressBarCallback()
    try:
        yield progress
    finally:
        if hasattr(progress, "pbar"):
            progress.pbar.close()


def _rescue(model: BaseAlgorithm, snapshot: Path) -> None:
    try:
        save_snapshot(model, snapshot)
    except Exception as error:  # The one that stopped the run is to be seen, not this one.
        print(f"\nNot saved: {error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("train", __doc__, EXAMPLES)
    parser.add_argument("--policy", required=True, help="checkpoint folder of the frozen policy")
    parser.add_argument("--output", required=True, help="folder of the run")
    add_seed(parser, text="of networks, environments, noise and replay")
    parser.add_argument("--algo", choices=ALGORITHMS, default="zprl", help="method; default: %(default)s")
    add_settings(parser, "ALGO.yml")
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl train``."""
    args = parser().parse_args(argv)
    config = read_config(args.policy)
    env_kwargs = config.get("env_kwargs", {})
    settings = load_settings(
        args.config.replace("ALGO.yml", f"{args.algo}.yml"),
        config["env_id"],
        args.set,
        env_kwargs.get("observation"),
        task_settings(config["env_id"], env_kwargs, "train"),
    )
    train(args.policy, args.output, args.seed, settings, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
