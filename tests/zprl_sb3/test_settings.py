from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from zprl_sb3.chain_policy import ChainPolicy
from zprl_sb3.dppo import DPPO, DPPOPolicy
from zprl_sb3.fine_tuning import FineTuning
from zprl_sb3.reinflow import ReinFlow, ReinFlowPolicy
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.robot_envs.collection import check_settings
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.sac_policy import SteeringSACPolicy
from zprl_sb3.settings import AUTO, check_options, flatten, load_settings, parse_override

FILE = """
default:
  scale: 0.5
  env_kwargs: {}
  chunk: null
  algorithm:
    learning_rate: 0.0001
    batch_size: 256
    policy_kwargs: {n_critics: 2, net_arch: [256], layer_norm: true}
  operators:
    good: {share: 1, noise: 0}
test/A-v0:
  scale: 0.2
  algorithm:
    policy_kwargs: {n_critics: 5}
test/Wrong-v0:
  algorithm: {learnin_rate: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "my.yml").write_text(FILE)
    return str(tmp_path / "my.yml")


def test_an_unknown_environment_has_the_default_settings(file: str) -> None:
    assert load_settings(file, "test/B-v0") == yaml.safe_load(FILE)["default"]


def test_an_environment_s_own_entry_changes_only_what_it_names(file: str) -> None:
    assert load_settings(file, "test/A-v0") == {
        "scale": 0.2,
        "env_kwargs": {},
        "chunk": None,
        "algorithm": {
            "learning_rate": 0.0001,
            "batch_size": 256,
            "policy_kwargs": {"n_critics": 5, "net_arch": [256], "layer_norm": True},
        },
        "operators": {"good": {"share": 1, "noise": 0}},
    }


def test_overrides_come_last_and_in_order(file: str) -> None:
    overrides = ["scale=0.7", "algorithm.policy_kwargs.n_critics=10", "scale=0.8", "chunk=4"]
    settings = load_settings(file, "test/A-v0", overrides)
    assert settings["scale"] == 0.8
    assert settings["chunk"] == 4
    assert settings["algorithm"]["policy_kwargs"] == {"n_critics": 10, "net_arch": [256], "layer_norm": True}


def test_an_open_table_takes_further_keys(file: str) -> None:
    overrides = ["env_kwargs.reach=0.3", "env_kwargs.by_key=true", "algorithm.policy_kwargs.log_std_bounds=[-5, 2]"]
    settings = load_settings(file, "test/B-v0", overrides)
    assert settings["env_kwargs"] == {"reach": 0.3, "by_key": True}
    expected = {"n_critics": 2, "net_arch": [256], "layer_norm": True, "log_std_bounds": [-5, 2]}
    assert settings["algorithm"]["policy_kwargs"] == expected


def test_what_is_new_in_an_open_table_grows_key_by_key(file: str) -> None:
    mine = ["operators.mine.share=1", "operators.mine.noise=[0, 0.1]", "operators.mine.share=2"]
    operators = load_settings(file, "test/A-v0", mine)["operators"]
    assert operators == {"good": {"share": 1, "noise": 0}, "mine": {"share": 2, "noise": [0, 0.1]}}


def test_a_table_within_an_open_one_knows_its_keys_but_takes_any_kind_of_value(file: str) -> None:
    operators = load_settings(file, "test/A-v0", ["operators.good.share=0.5", "operators.good.noise=[0, 1]"])[
        "operators"
    ]
    assert operators == {"good": {"share": 0.5, "noise": [0, 1]}}
    with pytest.raises(KeyError, match="operators, good: unknown setting 'nois'; known are noise, share"):
        load_settings(file, "test/A-v0", ["operators.good.nois=0.1"])


def test_the_settings_in_the_package_are_open_where_others_know_the_keys() -> None:
    settings = load_settings("zprl.yml", "test/A-v0", ["algorithm.policy_kwargs.log_std_bounds=[-5, 2]"])
    assert settings["algorithm"]["policy_kwargs"]["log_std_bounds"] == [-5, 2]
    settings = load_settings("collect.yml", "zprl/Push-v0", ["operators.mine.share=1"])
    assert settings["operators"]["mine"] == {"share": 1}
    with pytest.raises(ValueError, match="Operator 'mine' needs 'noise' as a number or a range"):
        check_settings("zprl/Push-v0", settings)


@pytest.mark.parametrize(
    ("override", "unknown", "known"),
    [
        ("scal=1", "'scal'", "algorithm, chunk, env_kwargs, operators, scale"),
        ("algorithm.rate=1", "'rate'", "batch_size, learning_rate, policy_kwargs"),
    ],
)
def test_an_override_of_an_unknown_setting_is_named_with_the_known_ones(
    file: str, override: str, unknown: str, known: str
) -> None:
    with pytest.raises(KeyError, match=f"unknown setting {unknown}; known are {known}") as caught:
        load_settings(file, "test/A-v0", [override])
    assert f"override '{override}'" in str(caught.value)


def test_an_unknown_setting_in_the_file_is_named_with_its_place(file: str) -> None:
    with pytest.raises(KeyError, match=r"my.yml, test/Wrong-v0, algorithm: unknown setting 'learnin_rate'"):
        load_settings(file, "test/Wrong-v0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scale=0.3", {"scale": 0.3}),
        ("a.b.c=true", {"a": {"b": {"c": True}}}),
        ("layers=[8, 8]", {"layers": [8, 8]}),
        ("name=x=y", {"name": "x=y"}),
        ("chunk=null", {"chunk": None}),
        ("chunk=", {"chunk": None}),
        ("text='1'", {"text": "1"}),
        ("rate=1e-4", {"rate": 1e-4}),
        ("rate=-2.5E3", {"rate": -2500.0}),
        ("name=e5", {"name": "e5"}),
    ],
)
def test_values_of_overrides_are_yaml(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


def test_only_lambda_may_be_auto() -> None:
    assert load_settings("zprl.yml", "zprl/Push-v0", ["scale=auto"])["scale"] == AUTO
    for change in ("gamma=auto", "scale=automatic", "algorithm.tau=auto"):
        with pytest.raises(ValueError, match="is a number"):
            load_settings("zprl.yml", "zprl/Push-v0", [change])


@pytest.mark.parametrize("text", ["scale", "=0.3", "", "a..b=1", ".a=1", "a.=1", "x=[1"])
def test_an_override_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="key=value") as caught:
        parse_override(text)
    assert repr(text) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        load_settings(str(tmp_path / "nowhere.yml"), "test/A-v0")


@pytest.mark.parametrize("content", ["", "[1, 2]", "test/A-v0: {scale: 1}", "default: {a: 1", "default: 3"])
def test_a_file_without_default_settings_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "my.yml").write_text(content)
    with pytest.raises(ValueError, match=r"my\.yml"):
        load_settings(str(tmp_path / "my.yml"), "test/A-v0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=3", "'algorithm' is a table of settings, not 3"),
        ("scale=large", "'scale' is a number or auto, not 'large'"),
        ("scale=true", "'scale' is a number or auto, not True"),
        ("algorithm.learning_rate=null", "'learning_rate' is a number, not None"),
        ("algorithm.learning_rate=[1]", r"'learning_rate' is a number, not \[1\]"),
        ("algorithm.learning_rate.start=1", "'learning_rate' is a number, not {'start': 1}"),
        ("algorithm.batch_size=2.5", "'batch_size' is a whole number, not 2.5"),
        ("algorithm.batch_size=.inf", "'batch_size' is a whole number, not inf"),
        ("algorithm.batch_size=true", "'batch_size' is a whole number, not True"),
        ("algorithm.batch_size=null", "'batch_size' is a whole number, not None"),
        ("algorithm.policy_kwargs.n_critics=2.5", "'n_critics' is a whole number, not 2.5"),
        ("algorithm.policy_kwargs.layer_norm=1", "'layer_norm' is true or false, not 1"),
        ("operators.good=3", "'good' is a table of settings, not 3"),
    ],
)
def test_a_value_of_another_kind_is_refused(file: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(file, "test/A-v0", [override])


@pytest.mark.parametrize(("text", "expected"), [("1e-4", 1e-4), ("5", 5), ("0.25", 0.25)])
def test_numbers_are_numbers_even_where_yaml_takes_them_for_text(file: str, text: str, expected: float) -> None:
    found = load_settings(file, "test/A-v0", [f"algorithm.learning_rate={text}"])["algorithm"]["learning_rate"]
    assert not isinstance(found, str)
    assert found == expected


def test_a_whole_number_may_be_written_as_a_real_one(file: str) -> None:
    for text in ("1e3", "1000.0"):
        found = load_settings(file, "test/A-v0", [f"algorithm.batch_size={text}"])["algorithm"]["batch_size"]
        assert (found, type(found)) == (1000, int)


def test_a_setting_that_is_null_takes_any_kind(file: str) -> None:
    for value in (4, 2.5, [1], None):
        assert load_settings(file, "test/A-v0", [f"chunk={value if value else 'null'}"])["chunk"] == value


def test_an_entry_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text("default: {a: 1}\ntest/A-v0: 3")
    with pytest.raises(ValueError, match=r"my\.yml: 'test/A-v0' is a table of settings, not 3"):
        load_settings(str(tmp_path / "my.yml"), "test/A-v0")


@pytest.mark.parametrize("name", ["zprl.yml", "collect.yml", "quickstart.yml", "tasks.yml"])
def test_every_entry_of_the_settings_in_the_package_fits_its_default(name: str, repository: Path) -> None:
    tables = yaml.safe_load((repository / "hyperparams" / name).read_text())
    starts = {entry.get("default") for entry in tables.values()}
    for env_id in set(tables) - starts:
        for observation in ("state", "image"):
            expected = {*tables["default"], *({"expert"} if "Adroit" in env_id and name == "collect.yml" else ())}
            assert set(load_settings(name, env_id, (), observation)) == expected


def test_what_the_quickstart_offers_can_be_steered_and_judged_by_its_rewards(repository: Path) -> None:
    quick = yaml.safe_load((repository / "hyperparams" / "quickstart.yml").read_text())
    for env_id in (name for name in quick if name.startswith("zprl/")):
        assert env_id in yaml.safe_load((repository / "hyperparams" / "zprl.yml").read_text())
        algorithm = load_settings("zprl.yml", env_id, observation="state")["algorithm"]
        # Adroit's rewards are dense.
        assert algorithm["policy_kwargs"]["bounded_critic"] == ("Adroit" not in env_id)


def test_an_entry_may_start_from_another_one_than_the_default(tmp_path: Path) -> None:
    entry = "other: {scale: 2, operators: {slow: {speed: 1}}}\ntest/A-v0: {default: other, scale: 3}"
    (tmp_path / "my.yml").write_text(f"{FILE}{entry.replace('test/A', 'test/C')}")
    settings = load_settings(str(tmp_path / "my.yml"), "test/C-v0", ["operators.slow.speed=2"])
    assert settings == {"scale": 3, "operators": {"slow": {"speed": 2}}}
    (tmp_path / "my.yml").write_text(f"{FILE}\ntest/C-v0: {{default: otter}}")
    with pytest.raises(ValueError, match="test/C-v0: there is no entry 'otter' to start from"):
        load_settings(str(tmp_path / "my.yml"), "test/C-v0")


def test_entries_may_start_from_each_other_but_not_in_a_circle(tmp_path: Path) -> None:
    file = tmp_path / "my.yml"
    chain = "mid: {default: default, a: 2, b: 2, state: {c: 2}}\nend: {default: mid, b: 3, state: {b: 4}}"
    file.write_text(f"default: {{a: 1, b: 1, c: 1, d: 1}}\n{chain}\ntest/A-v0: {{default: end, d: 5}}")
    assert load_settings(str(file), "test/A-v0") == {"a": 2, "b": 3, "c": 1, "d": 5}
    assert load_settings(str(file), "test/A-v0", (), "state") == {"a": 2, "b": 4, "c": 2, "d": 5}
    file.write_text("default: {a: 1}\none: {default: two}\ntwo: {default: one}\ntest/A-v0: {default: one}")
    with pytest.raises(ValueError, match=r"no entry '(one|two)' to start from, or it starts from itself"):
        load_settings(str(file), "test/A-v0")


EXTENSION = """
extends: {file}
default:
  scale: 0.1
  algorithm: {{batch_size: 64, policy_kwargs: {{log_std_bounds: [-2, 2]}}}}
  state: {{algorithm: {{batch_size: 32}}}}
test/A-v0: {{chunk: 8}}
"""


def test_a_file_that_extends_another_changes_what_comes_from_there(file: str, tmp_path: Path) -> None:
    extension = tmp_path / "extension.yml"
    extension.write_text(EXTENSION.format(file=file))
    settings = load_settings(str(extension), "test/A-v0", ["algorithm.learning_rate=1"])
    assert (settings["scale"], settings["chunk"]) == (0.1, 8)  # of its default entry, not of the other file's entry
    assert settings["algorithm"] == {
        "learning_rate": 1,
        "batch_size": 64,
        "policy_kwargs": {"n_critics": 5, "net_arch": [256], "layer_norm": True, "log_std_bounds": [-2, 2]},
    }
    assert load_settings(str(extension), "test/A-v0", (), "state")["algorithm"]["batch_size"] == 32
    assert load_settings(str(extension), "test/B-v0")["chunk"] is None
    extension.write_text(EXTENSION.format(file=file) + "replaces: [algorithm]")
    replaced = load_settings(str(extension), "test/A-v0", ["algorithm.batch_size=16"])
    assert replaced["algorithm"]["batch_size"] == 16
    assert "learning_rate" not in replaced["algorithm"]
    extension.write_text(EXTENSION.format(file=file).replace("scale", "scales"))
    with pytest.raises(KeyError, match="unknown setting 'scales'"):
        load_settings(str(extension), "test/A-v0")


@pytest.mark.parametrize("name", ["po_dec", "dsrl", "dsrl_na", "resemb"])
@pytest.mark.parametrize("env_id", ["zprl/BoxClose-v0", "zprl/AdroitDoor-v0", "zprl/Can-v0"])
def test_a_baseline_differs_from_zprl_in_what_is_its_own(name: str, env_id: str) -> None:
    own = {"steering", "learner", "sampling_steps", "scale", "algorithm.progressive", "algorithm.target_entropy"}
    zprl, baseline = (flatten(load_settings(f"{file}.yml", env_id, (), "state")) for file in ("zprl", name))
    different = {key for key in zprl.keys() | baseline.keys() if zprl.get(key) != baseline.get(key)}
    assert "steering" in different
    assert different <= own | {"algorithm.policy_kwargs.log_std_bounds"}


@pytest.mark.parametrize(
    ("name", "cls", "policy"), [("reinflow", ReinFlow, ReinFlowPolicy), ("dppo", DPPO, DPPOPolicy)]
)
def test_what_tunes_weights_takes_its_settings(name: str, cls: type, policy: type) -> None:
    known = {*inspect.signature(cls).parameters, *inspect.signature(FineTuning).parameters}
    of_policy = {*inspect.signature(policy).parameters, *inspect.signature(ChainPolicy).parameters}
    for env_id in ("zprl/Can-v0", "zprl/Square-v0", "zprl/BoxClose-v0"):
        for observation in ("state", "image"):
            settings = load_settings(f"{name}.yml", env_id, (), observation)
            assert set(settings["algorithm"]) <= known
            assert set(settings["algorithm"]["policy_kwargs"]) <= of_policy
            assert (settings["steering"], settings["learner"], settings["scale"]) == ("weights", name, 1.0)
    # Theirs is a discount per chunk.
    assert load_settings(f"{name}.yml", "zprl/Square-v0")["gamma"] ** 4 == pytest.approx(0.999, abs=1e-6)
    assert load_settings(f"{name}.yml", "zprl/Transport-v0")["gamma"] ** 5 == pytest.approx(0.999, abs=1e-6)


def test_changes_for_state_observations_come_on_demand(tmp_path: Path) -> None:
    entry = "test/C-v0: {scale: 3, state: {scale: 4}}"
    (tmp_path / "my.yml").write_text(f"default: {{scale: 1, chunk: 2}}\n{entry}")
    found = {kind: load_settings(str(tmp_path / "my.yml"), "test/C-v0", (), kind) for kind in ("state", "image", None)}
    assert {kind: settings["scale"] for kind, settings in found.items()} == {"state": 4, "image": 3, None: 3}
    changed = load_settings(str(tmp_path / "my.yml"), "test/C-v0", ["scale=5"], "state")
    assert changed == {"scale": 5, "chunk": 2}
    (tmp_path / "my.yml").write_text("default: {scale: 1}\ntest/C-v0: {state: {scalle: 4}}")
    with pytest.raises(KeyError, match="unknown setting 'scalle'"):
        load_settings(str(tmp_path / "my.yml"), "test/C-v0", (), "state")


PAPER = {  # Table VI: λ, warm-up chunks
    "zprl/Can-v0": (0.25, 1000),
    "zprl/Square-v0": (0.2, 2000),
    "zprl/Transport-v0": (0.1, 4000),
    "zprl/BoxClose-v0": (1.5, 10000),
    "zprl/AdroitDoor-v0": (0.75, 4000),
    "zprl/AdroitHammer-v0": (0.5, 4000),
    "zprl/AdroitPen-v0": (0.4, 2000),
    "zprl/PushWall-v0": (1.5, 10000),
}


@pytest.mark.parametrize("env_id", PAPER)
def test_the_paper_s_tasks_have_the_paper_s_settings(env_id: str) -> None:
    settings = load_settings("zprl.yml", env_id)
    algorithm = settings["algorithm"]
    assert (settings["scale"], algorithm["learning_starts"]) == PAPER[env_id]
    assert settings["gamma"] == (0.997 if "Transport" in env_id else 0.99)
    dense = "Adroit" in env_id
    assert algorithm["bootstrap_timeouts"] is dense
    assert algorithm["policy_kwargs"]["bounded_critic"] is not dense
    small = load_settings("zprl.yml", env_id, (), "state")
    assert small["algorithm"]["policy_kwargs"]["net_arch"] == [128, 128, 128]
    assert small["n_timesteps"] < settings["n_timesteps"]
    assert small["algorithm"]["bootstrap_timeouts"] is dense


def test_reading_twice_gives_independent_settings(file: str) -> None:
    load_settings(file, "test/A-v0")["algorithm"]["learning_rate"] = 7
    assert load_settings(file, "test/A-v0")["algorithm"]["learning_rate"] == 0.0001


def test_the_algorithm_s_own_defaults_are_those_of_the_settings() -> None:
    algorithm = load_settings("zprl.yml", "default")["algorithm"]
    networks, buffer = algorithm.pop("policy_kwargs"), algorithm.pop("replay_buffer_kwargs")
    assert networks.pop("net_arch") == [256, 256, 256]  # what None stands for
    for cls, settings in ((SteeringSAC, algorithm), (SteeringSACPolicy, networks), (SteeringReplayBuffer, buffer)):
        parameters = inspect.signature(cls).parameters
        assert {name: parameters[name].default for name in settings} == settings


def test_a_run_that_ends_before_its_policy_learns_is_refused() -> None:
    for chunks, refused in (("n_timesteps=2000", True), ("n_timesteps=2001", False)):
        settings = load_settings("reinflow.yml", "zprl/BoxClose-v0", [chunks], "state")
        if refused:
            with pytest.raises(
                ValueError, match="1 rollouts of 100 x 20 chunks = 2000, and the policy would never learn"
            ):
                check_options(settings)
        else:
            check_options(settings)
