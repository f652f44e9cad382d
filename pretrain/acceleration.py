"""Faster arithmetic where the machine has it: bfloat16 and compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch as th
from torch import nn
from tqdm import tqdm

from zprl_sb3.bfloat16 import multiplies_bfloat16
from zprl_sb3.policy import FlowPolicy


def use_autocast(setting: bool | str, policy: FlowPolicy, device: th.device) -> bool:
    """Return whether to run the networks in bfloat16.

    ``"auto"``: for policies that see images, on devices that multiply bfloat16 themselves. On a CPU with AVX512-BF16 a
    ResNet-18 is 1.7 times as fast with it; the small networks of state policies gain nothing.

    :param setting: true, false or ``"auto"``
    :param policy: The policy
    :param device: Where it is trained
    """
    if setting != "auto":
        return bool(setting)
    return bool(policy.image_keys) and multiplies_bfloat16(device)


def compiled(
    losses: nn.Module, attempt: Callable[[nn.Module], None], setting: bool | str, device: th.device
) -> nn.Module:
    """Return the losses compiled by ``torch.compile``, or as they are where it does not work (no C compiler).

    ``"auto"``: on a GPU. On a CPU it gains nothing and takes a minute to begin.

    :param losses: What is compiled
    :param attempt: Computes losses and gradients once; where only the compiled ones fail, compiling does not work
    :param setting: true, false or ``"auto"``
    :param device: Where they are computed
    """
    if not (device.type == "cuda" if setting == "auto" else setting):
        return losses
    faster = cast(nn.Module, th.compile(losses))
    try:
        attempt(faster)
    except Exception as error:
        attempt(losses)  # what fails here too, for want of memory for example, has nothing to do with compiling
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        tqdm.write(f"torch.compile does not work here ({reason}); training goes on without it")
        return losses
    return faster
