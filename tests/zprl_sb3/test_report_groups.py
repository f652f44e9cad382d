from __future__ import annotations

from dataclasses import replace

from runs import ENV, run
from zprl_sb3.report import Run
from zprl_sb3.report_groups import by_environment, group


def labels(runs: list[Run]) -> dict[str, list[Run]]:
    return {each.label: each.runs for each in group(runs)}


def test_runs_that_differ_in_their_seed_only_belong_together() -> None:
    first, second, other = run([0.5], seed=0), run([0.6], seed=1), run([0.7], seed=0, scale=0.2)
    found = group([first, other, second])
    assert [(each.env_id, each.label, each.runs) for each in found] == [
        (ENV, "ZPRL, λ = 0.5", [first, second]),
        (ENV, "ZPRL, λ = 0.2", [other]),
    ]
    assert [each.seeds for each in found] == ["2 seeds", "1 seed"]


def test_what_differs_is_named_unless_most_have_it() -> None:
    first, second = run([0.5], seed=0), run([0.6], seed=1)
    policy, other = run([0.7], **{"base policy": "def"}), run([0.7], scale=0.2)
    assert labels([first, policy, other, second]) == {
        "ZPRL, λ = 0.5": [first, second],
        "ZPRL, λ = 0.5, base policy = def": [policy],
        "ZPRL, λ = 0.2": [other],
    }


def test_base_policies_are_told_apart_by_how_they_were_made() -> None:
    def on(policy: str, seed: int = 0, **facts: object) -> Run:
        return replace(run([0.5], seed=seed, **{"base policy": policy}), base_facts=facts)

    sizes = [
        on("abc", **{"bottleneck.latent_dim": 8, "training.beta": 1e-4}),
        on("def", **{"bottleneck.latent_dim": 16, "training.beta": 1e-4}),
    ]
    assert list(labels([*sizes, replace(sizes[0], seed=1)])) == ["ZPRL, λ = 0.5, d = 8", "ZPRL, λ = 0.5, d = 16"]
    betas = [on(policy, **{"training.beta": beta}) for policy, beta in (("abc", 1e-3), ("def", 1e-5))]
    assert list(labels(betas)) == ["ZPRL, λ = 0.5, β = 0.001", "ZPRL, λ = 0.5, β = 1e-05"]
    counts = [on(str(count), demonstrations=count) for count in (25, 50)]
    assert [each.method for each in group(counts)] == ["ZPRL, demonstrations = 25", "ZPRL, demonstrations = 50"]
    # Two of 25 that differ in their seed: only the fingerprint tells.
    assert list(labels([*counts, on("26", demonstrations=25)])) == [
        f"ZPRL, λ = 0.5, base policy = {policy}" for policy in (25, 50, 26)
    ]
    # A checkpoint with an attached bottleneck does not tell the sizes of what it was attached to.
    joint = on("abc", **{"policy.horizon": 8, "bottleneck": "joint"})
    assert list(labels([joint, on("def", bottleneck="attached")])) == [
        "ZPRL, λ = 0.5, bottleneck = joint",
        "ZPRL, λ = 0.5, bottleneck = attached",
    ]


def test_a_base_policy_that_differs_in_the_samplers_steps_only_is_not_told_apart() -> None:
    def on(policy: str, **facts: object) -> Run:
        return run([0.5], **{"base policy": policy, **facts})  # type: ignore[arg-type]

    runs = [on("abc"), on("abc", scale=0.2), on("def", sampling_steps=8)]
    assert list(labels(runs)) == ["ZPRL, λ = 0.5", "ZPRL, λ = 0.2", "ZPRL, λ = 0.5, sampling_steps = 8"]
    assert "ZPRL, λ = 0.5, base policy = ghi" in labels([*runs, on("ghi")])


def test_of_two_groups_both_are_told() -> None:
    first, setting = run([0.5]), run([0.8], **{"algorithm.tau": 0.1})
    assert list(labels([first, setting])) == ["ZPRL, λ = 0.5, tau = None", "ZPRL, λ = 0.5, tau = 0.1"]


def test_names_that_end_alike_stay_whole() -> None:
    settings = [{"env_kwargs.reach": 1, "train_env_kwargs.reach": reach} for reach in (1, 2, 3)]
    settings.append({"env_kwargs.reach": 2, "train_env_kwargs.reach": 1})
    assert list(labels([run([0.5], **each) for each in settings])) == [
        "ZPRL, λ = 0.5, train_env_kwargs.reach = 1",
        "ZPRL, λ = 0.5, train_env_kwargs.reach = 2",
        "ZPRL, λ = 0.5, train_env_kwargs.reach = 3",
        "ZPRL, λ = 0.5, env_kwargs.reach = 2, train_env_kwargs.reach = 1",
    ]


def test_of_a_file_the_name_is_told_unless_two_have_it() -> None:
    plain, given = run([0.5]), run([0.6], demonstrations="/data/box/demos.hdf5")
    assert list(labels([plain, given]))[1] == "ZPRL, λ = 0.5, demonstrations = demos.hdf5"
    other = run([0.6], demonstrations="/data/more/demos.hdf5")
    assert list(labels([given, other])) == [
        "ZPRL, λ = 0.5, demonstrations = /data/box/demos.hdf5",
        "ZPRL, λ = 0.5, demonstrations = /data/more/demos.hdf5",
    ]


def test_runs_whose_settings_read_alike_belong_together() -> None:
    missing, null = run([0.5], seed=0), run([0.6], seed=1, **{"algorithm.clip": None})
    number, text = (run([0.7], seed=index, scale=0.2, task=task) for index, task in enumerate((1, "1")))
    assert list(labels([missing, null, number, text]).values()) == [[missing, null], [number, text]]


def test_methods_are_not_told_apart_by_their_settings() -> None:
    zprl = run([0.5], **{"algorithm.tau": 0.1, "base policy": "def"})
    action, na = run([0.5], scale=0.1, steering="action"), run([0.5], scale=1.5, steering="noise", learner="dsrl_na")
    assert list(labels([na, action, zprl])) == ["ZPRL, λ = 0.5", "Policy Decorator, λ = 0.1", "DSRL-NA, λ = 1.5"]


def test_what_steers_nothing_has_no_scale() -> None:
    assert list(labels([run([0.5], learner="soe"), run([0.5])])) == ["ZPRL, λ = 0.5", "SOE"]


def test_a_method_has_one_name_on_all_tasks() -> None:
    def on(task: str, **facts: object) -> list[Run]:
        return [run([0.5], env_id=task, **{"base policy": task, **facts})]  # type: ignore[arg-type]

    # What tasks differ in, as λ and the base policy do, does not tell methods apart; what differs within one does.
    runs = on("A", scale=0.3) + on("A", scale=0.3, anneal=5) + on("B", scale=1.5) + on("B", scale=1.5, anneal=5)
    runs += on("B", scale=1.5, clip=2)
    assert [(each.env_id, each.method, each.label) for each in group(runs)] == [
        ("A", "ZPRL", "ZPRL, λ = 0.3"),
        ("A", "ZPRL, anneal = 5", "ZPRL, λ = 0.3, anneal = 5"),
        ("B", "ZPRL", "ZPRL, λ = 1.5"),
        ("B", "ZPRL, anneal = 5", "ZPRL, λ = 1.5, anneal = 5"),
        ("B", "ZPRL, clip = 2", "ZPRL, λ = 1.5, clip = 2"),
    ]
    swept = group([*runs[:1], *on("A", scale=0.6)])
    assert [each.method for each in swept] == ["ZPRL, λ = 0.3", "ZPRL, λ = 0.6"]


def test_groups_are_in_order_of_environments_and_methods_with_zprl_first() -> None:
    runs = [run([0.5], env_id=task, steering=steering) for task in ("B", "A") for steering in ("noise", "latent")]
    runs.append(run([0.5], env_id="A", steering="new"))
    found = by_environment(group(runs))
    assert {env_id: [each.method for each in groups] for env_id, groups in found.items()} == {
        "B": ["ZPRL", "DSRL"],
        "A": ["ZPRL", "DSRL", "sac on new"],
    }
