"""The devices that tests of stacked training run on: numpy everywhere, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.learning.device import DeviceError
from sidecar.learning.device.cuda import open_cuda
from sidecar.learning.device.stacked import Device
from tests.host_device import HostDevice

OpenDevice = Callable[[int], Device]


def missing() -> str:
    """Why nothing can run on a GPU here; empty if it can."""
    try:
        open_cuda()
    except DeviceError as error:
        return str(error)
    return ""


MISSING = missing()
needs_gpu = pytest.mark.skipif(bool(MISSING), reason=MISSING)
devices = pytest.mark.parametrize("open_device", [HostDevice, pytest.param(open_cuda, marks=needs_gpu)], ids=["numpy", "cuda"])
