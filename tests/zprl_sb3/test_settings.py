from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zprl_sb3.settings import load_settings, parse_override

FILE = """
default:
  scale: 0.5
  env_kwargs: {}
  chunk: null
  algorithm:
    learning_rate: 0.0001
    policy_kwargs: {n_critics: 2, net_arch: [256]}
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
        "algorithm": {"learning_rate": 0.0001, "policy_kwargs": {"n_critics": 5, "net_arch": [256]}},
    }


def test_overrides_come_last_and_in_order(file: str) -> None:
    overrides = ["scale=0.7", "algorithm.policy_kwargs.n_critics=10", "scale=0.8", "chunk=4"]
    settings = load_settings(file, "test/A-v0", overrides)
    assert settings["scale"] == 0.8
    assert settings["chunk"] == 4
    assert settings["algorithm"] == {"learning_rate": 0.0001, "policy_kwargs": {"n_critics": 10, "net_arch": [256]}}


def test_an_empty_table_takes_any_key(file: str) -> None:
    settings = load_settings(file, "test/A-v0", ["env_kwargs.reach=0.3"])
    assert settings["env_kwargs"] == {"reach": 0.3}


def test_a_second_key_of_an_open_table_is_taken_too(file: str) -> None:
    settings = load_settings(file, "test/A-v0", ["env_kwargs.reach=0.3", "env_kwargs.by_key=true"])
    assert settings["env_kwargs"] == {"reach": 0.3, "by_key": True}


@pytest.mark.parametrize(
    ("override", "unknown", "known"),
    [
        ("scal=1", "'scal'", "algorithm, chunk, env_kwargs, scale"),
        ("algorithm.rate=1", "'rate'", "learning_rate, policy_kwargs"),
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
    ],
)
def test_values_of_overrides_are_yaml(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


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
        ("scale=large", "'scale' is a number, not 'large'"),
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


@pytest.mark.parametrize("name", ["zprl.yml", "collect.yml", "quickstart.yml"])
def test_every_entry_of_the_settings_in_the_package_fits_its_default(name: str, repository: Path) -> None:
    tables = yaml.safe_load((repository / "hyperparams" / name).read_text())
    for env_id in tables:
        assert set(load_settings(name, env_id)) == set(tables["default"])


def test_reading_twice_gives_independent_settings(file: str) -> None:
    load_settings(file, "test/A-v0")["algorithm"]["learning_rate"] = 7
    assert load_settings(file, "test/A-v0")["algorithm"]["learning_rate"] == 0.0001
