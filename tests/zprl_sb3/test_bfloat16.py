"""Which devices are said to multiply bfloat16."""

from __future__ import annotations

import pytest
import torch as th

from zprl_sb3.bfloat16 import multiplies_bfloat16

CPU, GPU = th.device("cpu"), th.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_a_processor_says_it_itself(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert multiplies_bfloat16(CPU) == expected


def test_older_releases_of_pytorch_tell_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.cpu.get_capabilities")
    for expected in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda expected=expected: expected)
        assert multiplies_bfloat16(CPU) == expected
    monkeypatch.delattr("torch.cpu._is_avx512_bf16_supported")
    assert not multiplies_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), True), ((7, 5), False)])
def test_a_gpu_does_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert multiplies_bfloat16(GPU) == expected
