"""Which runs of a report belong together, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zprl_sb3.report import BASE_POLICY, Run
from zprl_sb3.settings import METHODS

STEPS = "sampling_steps"  # of the sampler: a run's setting, and part of its base policy's fingerprint
SYMBOLS = {"bottleneck.latent_dim": "d", "training.beta": "β"}  # the paper's, of what base policies may differ in


@dataclass
class Group:
    """Runs that differ in their seed only.

    :param env_id: Gymnasium id
    :param method: The method and what tells it from others of its kind, the same in all environments
    :param label: The same with λ in any case where there is one; with the environment it names the group
    :param runs: One for each seed
    """

    env_id: str
    method: str
    label: str
    runs: list[Run]

    @property
    def seeds(self) -> str:
        """How many runs there are, in words."""
        return f"{len(self.runs)} seed{'s'[: len(self.runs) > 1]}"


def group(runs: Sequence[Run]) -> list[Group]:
    """Return runs as groups: environment by environment, and there by method, ZPRL first and without options first.

    A method's groups are told apart by the settings that differ within an environment. A value that more than half of
    them have is not mentioned.
    """
    alike: list[list[Run]] = []
    for run in runs:
        same = (each for each in alike if (each[0].env_id, each[0].facts) == (run.env_id, run.facts))
        if members := next(same, None):
            members.append(run)
        else:
            alike.append([run])
    groups: dict[tuple[str, str], Group] = {}
    for members in alike:
        new = _named(members, [each[0] for each in alike if each[0].method == members[0].method])
        # A setting may be null in one run and missing in another: they read alike, and are.
        groups.setdefault((new.env_id, new.label), new).runs.extend(members)
    environments = list(dict.fromkeys(run.env_id for run in runs))
    return sorted(groups.values(), key=lambda each: (environments.index(each.env_id), *_order(each)))


def _order(each: Group) -> tuple[int, bool]:
    name, names = each.runs[0].method, list(METHODS.values())
    return names.index(name) if name in names else len(names), each.method != name


def by_environment(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return groups by environment."""
    environments: dict[str, list[Group]] = {}
    for each in groups:
        environments.setdefault(each.env_id, []).append(each)
    return environments


def _named(members: Sequence[Run], peers: Sequence[Run]) -> Group:
    """Return an empty group with the names of its members.

    :param peers: One run of each group of the method, in all environments
    """
    run, differing = members[0], _differing([(peer.env_id, peer.facts) for peer in peers])
    # Which have a λ like all, and no use for it.
    steers = run.method != METHODS["latent", "soe"] and run.facts.get("steering") != "weights"
    scale = [f"λ = {run.facts['scale']:g}"] if steers else []
    others = [key for key in differing if key != "scale" and str(run.facts.get(key)) != _usual(key, peers)]
    more = [f"{_short_key(key, differing)} = {_short_value(run.facts.get(key), key, peers)}" for key in others]
    if BASE_POLICY in others and (words := _base_words(run, peers)) is not None:
        place = others.index(BASE_POLICY)
        more[place : place + 1] = words
    method = [run.method, *(scale if "scale" in differing else ()), *more]
    return Group(run.env_id, ", ".join(method), ", ".join([run.method, *scale, *more]), [])


def _base_words(run: Run, peers: Sequence[Run]) -> list[str] | None:
    """Return what the base policy differs in from its environment's others, None where that is not known of all.

    It may be nothing but the sampler's steps, which are a setting of the run and named as such.
    """
    here = [peer for peer in peers if peer.env_id == run.env_id]
    # What some do not tell at all, as a bottleneck that was attached to another checkpoint, is no difference to name.
    common = set.intersection(*(set(peer.base_facts) for peer in here))
    keys = _differing([(peer.env_id, {k: v for k, v in peer.base_facts.items() if k in common}) for peer in here])
    told = {(peer.facts.get(STEPS), *(str(peer.base_facts.get(key)) for key in keys)) for peer in here}
    if len(told) < len({(peer.facts.get(STEPS), peer.facts.get(BASE_POLICY)) for peer in here}):
        return None
    return [f"{SYMBOLS.get(key, _short_key(key, keys))} = {run.base_facts.get(key)}" for key in keys]


def _differing(tables: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the settings that differ within an environment. Tasks may differ from each other in any.

    :param tables: The environment and the settings of each
    """

    def differs(key: str) -> bool:
        pairs = {(env_id, str(table.get(key))) for env_id, table in tables}
        return len(pairs) > len({env_id for env_id, _ in pairs})

    return [key for key in dict.fromkeys(key for _, table in tables for key in table) if differs(key)]


def _usual(key: str, peers: Sequence[Run]) -> str | None:
    """Return the value that more than half of the groups have, None if there is none."""
    ((value, count),) = Counter(str(peer.facts.get(key)) for peer in peers).most_common(1)
    return value if 2 * count > len(peers) else None


def _short_key(key: str, keys: Iterable[str]) -> str:
    """Return the last part of a dotted name, unless another one ends with it."""
    last = key.rpartition(".")[2]
    return last if [each.rpartition(".")[2] for each in keys].count(last) == 1 else key


def _short_value(value: Any, key: str, peers: Sequence[Run]) -> str:
    """Return a file's name without its folders, unless it stands for several files within an environment."""
    pairs = {(peer.env_id, str(peer.facts.get(key))) for peer in peers}
    names = Counter((env_id, Path(path).name) for env_id, path in pairs)
    return Path(value).name if isinstance(value, str) and max(names.values()) == 1 else str(value)
