"""A study of Optuna that many processes work at: who takes which trial, and what becomes of the trials of the dead."""

from __future__ import annotations

import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from zprl_sb3.locks import holder, locked, locked_in_turn
from zprl_sb3.settings import NOT_IDENTITY, differences
from zprl_sb3.tuning import Tuning, TuningError

JOURNAL = "study.journal"
WORKERS = "workers"  # folder of the locks of all processes at a study
WORKER, ERROR = "worker", "error"  # attributes of a trial
ABOUT, SPACE = "about", "space"  # attributes of a study
RETRIES = 3  # of a trial whose process died
HEARTBEAT, GRACE = 5, 30  # seconds between signs of life in a database, and after the last one until a trial is lost
LENGTH = ("n_timesteps", "eval_freq")  # of NOT_IDENTITY those that make trials comparable


class SharedStudy:
    """A study in a journal file or a database, and this process as one of its workers.

    A trial that a dead process was at is failed and queued again, by whoever looks for work next: at once with the
    journal, where a process holds a lock as long as it lives, and with a database when its heartbeats have been missing
    for half a minute, so that workers may share nothing but the database.

    :param study: Optuna's
    :param storage: Of the study
    :param space: What the trials draw from
    :param output: Folder of the trials
    :param worker: This process's name, by which a journal knows whether it lives
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        space: Mapping[str, BaseDistribution],
        output: Path,
        worker: str,
    ) -> None:
        self.study, self.output = study, output
        self.space = dict(space)
        self._storage, self._worker = storage, worker
        self._mine: dict[int, int] = {}  # identity in the storage of this process's running trials, by number
        self._lost: set[int] = set()
        self._lock = Lock()

    def take(self, total: int) -> optuna.Trial | None:
        """Return a trial to run: one to be tried again, or a new one unless there are ``total``; None where none is."""
        with locked_in_turn(self.output):
            self._recover()
            if not self.trials(TrialState.WAITING) and _begun(self.trials()) >= total:
                return None
            trial = self.study.ask(self.space)
            with self._lock:
                self._mine[trial.number] = trial._trial_id
            self.beat()
            trial.set_user_attr(WORKER, self._worker)
        return trial

    def unfinished(self) -> bool:
        """Whether a trial runs somewhere, or waits."""
        return bool(self.trials(TrialState.RUNNING, TrialState.WAITING))

    def done(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many of the trials have come to an end; one that is tried again counts once."""
        return _begun(trials) - sum(not trial.state.is_finished() for trial in trials)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in such states, or all; to be looked at only."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def beat(self) -> None:
        """Give a sign of life for the trials of this process, and find out which of them others took for lost."""
        with self._lock:
            mine = dict(self._mine)
        for number, identity in mine.items():
            if isinstance(self._storage, RDBStorage):
                self._storage.record_heartbeat(identity)
            if self._storage.get_trial(identity).state != TrialState.RUNNING:
                self.lose(number)

    def lose(self, number: int) -> None:
        """Note that another process has a trial of this one now."""
        self._lost.add(number)

    def is_lost(self, number: int) -> bool:
        """Whether others took a trial of this process for lost: after a long sleep of this machine, for instance."""
        return number in self._lost

    def finish(self, number: int, state: TrialState, value: float | None = None, error: str | None = None) -> None:
        """Tell how a trial of this process ended.

        :param number: The trial's
        :param state: COMPLETE with a value, PRUNED, or FAIL with an error
        """
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # others took it for lost, and try it again
            if error is not None:
                self._storage.set_trial_user_attr(self._mine[number], ERROR, error)
            self.study.tell(number, value, state, skip_if_finished=True)
        self._let_go(number)

    def again(self, number: int, retries: int | None = RETRIES) -> None:
        """Fail a trial that was cut short, and queue it anew with the same settings and the same folder.

        :param number: The trial's
        :param retries: Fail it only, after so many; None: never
        """
        running = number in [each.number for each in self.trials(TrialState.RUNNING)]
        trial = self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        if running and trial.state == TrialState.FAIL:  # else others have queued it
            _queue(self.study, trial, retries)
        self._let_go(number)

    def _let_go(self, number: int) -> None:
        with self._lock:
            self._mine.pop(number, None)
        self._lost.discard(number)

    def _recover(self) -> None:
        """Fail the trials of dead processes and queue them again. Only for who has the study's lock."""
        if isinstance(self._storage, RDBStorage):
            fail_stale_trials(self.study)
        for trial in self.trials(TrialState.RUNNING):
            if self._is_dead(trial):
                self.again(trial.number)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if not isinstance(self._storage, RDBStorage):
            return worker is None or holder(self.output / WORKERS / worker) is None
        # Killed between taking it and the first heartbeat, which Optuna waits for.
        begun = trial.datetime_start or datetime.now()
        return worker is None and datetime.now() - begun > timedelta(seconds=2 * GRACE)


def _begun(trials: Sequence[FrozenTrial]) -> int:
    return sum(origin(trial) == trial.number for trial in trials)


def _queue(study: optuna.Study, trial: FrozenTrial, retries: int | None = RETRIES) -> None:
    trial.user_attrs = {}  # who takes it next is another worker
    RetryHeartbeatStaleTrialCallback(retries)(study, trial)


def origin(trial: FrozenTrial) -> int:
    """Return the number of the trial that a trial repeats, or its own: the name of its folder."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


@contextmanager
def joined(tuning: Tuning, output: Path, storage: str | None = None, name: str | None = None) -> Iterator[SharedStudy]:
    """Begin a study, or join the one that is there, for as long as the block lasts.

    :param tuning: What it searches
    :param output: Folder of the trials
    :param storage: URL of a database; None: a journal file in ``output``, for all machines that share it
    :param name: Of the study; None: the output folder's
    :raises TuningError: If there is a study of that name that searches something else
    :raises ImportError: If the database needs a driver that is not installed
    :raises ConnectionError: If the database does not answer
    """
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"  # numbers of processes come again
    with _without_warnings(), _answering(storage), locked(output / WORKERS / worker):
        if storage is None and holder(output / WORKERS / worker) is None:
            raise OSError(f"{output} is on a file system without locks: give a database (--storage)")
        with locked_in_turn(output):  # of workers that start together one makes the tables
            opened = _open(output, storage)
            study = optuna.create_study(
                storage=opened,
                study_name=name or output.resolve().name,
                direction="maximize",
                pruner=_pruner(tuning),
                load_if_exists=True,
            )
            space = _agreed(study, tuning)
        yield SharedStudy(study, opened, space, output, worker)


def _agreed(study: optuna.Study, tuning: Tuning) -> dict[str, BaseDistribution]:
    """Return the space of a study, which is decided when it begins."""
    about, ignore = tuning.about(), [f"settings.{name}" for name in NOT_IDENTITY if name not in LENGTH]
    if SPACE not in study.user_attrs:
        space = tuning.space()
        study.set_user_attr(ABOUT, about)
        study.set_user_attr(SPACE, {key: distribution_to_json(value) for key, value in space.items()})
    elif changes := differences(study.user_attrs[ABOUT], about, ignore):
        raise TuningError(
            f"The study {study.study_name!r} was begun otherwise: {changes}. Choose another --output, and with a "
            "database another --study"
        )
    return {key: json_to_distribution(text) for key, text in study.user_attrs[SPACE].items()}


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    """Return what ends trials early. Steps are evaluations, those of further seeds counted on."""
    steps = (tuning.steps + 1) * len(tuning.seeds) - 1
    if tuning.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, steps // 9), max_resource=steps)
    if tuning.pruner == "median":  # not before a third: the warm-up, and the first steps of learning, tell little
        return optuna.pruners.MedianPruner(n_warmup_steps=steps // 3)
    return optuna.pruners.NopPruner()


def database(storage: str) -> URL:
    """Return the URL of a database, of PostgreSQL with the driver that the extra ``tune`` brings.

    :raises TuningError: If it is none
    """
    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise TuningError(
            "--storage is the URL of a database, as in postgresql://user:password@host/name, or is left out"
        ) from error
    # Without a driver in the URL, SQLAlchemy 2.0 and 2.1 take different ones.
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _open(output: Path, storage: str | None) -> BaseStorage:
    if storage is None:
        # Its own lock is a link, which holds on NFS, too.
        return JournalStorage(JournalFileBackend(str(output / JOURNAL)))
    url = database(storage)
    try:
        return RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=_queue,
        )
    except (ImportError, NoSuchModuleError) as error:
        driver = "pymysql and write mysql+pymysql://..." if "mysql" in url.drivername else "'zprl-sb3[tune]'"
        raise ImportError(f"No driver for {url.drivername} is installed: pip install {driver}") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # that we give them ourselves
        yield


@contextmanager
def _answering(storage: str | None) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        where = database(storage).render_as_string() if storage else JOURNAL  # without the password
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConnectionError(f"The storage {where} does not answer: {cause}") from error
