"""Where bfloat16 and compiled code are used, and that a machine without them goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch import nn

from helpers import image_policy, same, tiny_policy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.acceleration import compiled, use_autocast

CPU, GPU = th.device("cpu"), th.device("cuda")


def test_bfloat16_is_for_images_where_the_machine_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert use_autocast("auto", image_policy(), CPU) == native
        assert not use_autocast("auto", tiny_policy(), CPU)
    for capability, native in (((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, capability=capability: capability)
        assert use_autocast("auto", image_policy(), GPU) == native
    assert use_autocast(True, tiny_policy(), CPU)
    assert not use_autocast(False, image_policy(), GPU)


def test_code_is_compiled_on_a_gpu_or_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, faster = nn.Linear(1, 1), nn.Linear(1, 1)
    monkeypatch.setattr("torch.compile", lambda _: faster)
    tried: list[nn.Module] = []
    assert compiled(plain, tried.append, "auto", CPU) is plain
    assert compiled(plain, tried.append, False, GPU) is plain
    assert not tried
    assert compiled(plain, tried.append, "auto", GPU) is faster
    assert compiled(plain, tried.append, True, CPU) is faster
    assert tried == [faster, faster]


def test_where_nothing_can_be_compiled_the_training_goes_on(
    whole: FlowPolicy, tmp_path: Path, trainer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(nn.Module):
        def __init__(self, losses: nn.Module) -> None:
            super().__init__()
            self.losses = losses

        def forward(self, *inputs: Any) -> Any:
            self.losses(*inputs)
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    monkeypatch.setattr("torch.compile", Broken)
    result = trainer(tmp_path, compile=True).run()
    assert "torch.compile does not work here (InvalidCxxCompiler: No working" in capsys.readouterr().out
    assert same(result.parameters(), whole.parameters())


def test_what_fails_without_compiling_too_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda _: nn.Linear(1, 1))

    def attempt(_: nn.Module) -> None:
        raise MemoryError("no room for a batch of 4096")

    with pytest.raises(MemoryError, match="no room for a batch of 4096"):
        compiled(nn.Linear(1, 1), attempt, True, CPU)


@pytest.mark.slow
def test_compiled_code_learns_the_same(
    whole: FlowPolicy, tmp_path: Path, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced as always, forward and backward; that C++ is made of it and compiled takes a minute and a half.
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    result = trainer(tmp_path, compile=True).run()
    for mine, theirs in zip(result.parameters(), whole.parameters(), strict=True):
        th.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("setting", ["autocast", "compile"])
def test_other_words_than_auto_are_refused(config: Any, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"training\.{setting} must be true, false or auto, not 'maybe'"):
        config(**{setting: "maybe"})
