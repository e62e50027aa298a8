"""Which calls become one kernel, and what its code says."""

from __future__ import annotations

import numpy as np

from sidecar.learning.device.fusion import EXPRESSIONS, grouped, kernel, needless
from sidecar.learning.device.recorder import Recorder
from tests.host_device import HostDevice


class Recording(HostDevice):
    """Keeps what `program` records."""

    def calls(self, operations):
        return self._recorder.record(operations)


def some(*shape, device=None):
    device = device or Recording(2)
    return device, *(device.array(np.ones(shape, dtype=np.float32)) for _ in range(3))


def test_neighbours_of_one_shape_are_one_kernel_that_stores_what_is_read_later():
    device, x, y, scratch = some(4)
    calls = device.calls([
        lambda: np.multiply(x, 0.5, out=scratch),
        lambda: np.add(y, scratch, out=y),
    ])  # fmt: skip
    groups = grouped(calls)
    assert len(groups) == 1
    made = kernel(groups[0], *needless(groups, [y]))
    assert (made.parameters, made.inputs) == (["float32 a0", "float32 a1"], 1)
    assert made.code.splitlines() == [
        "float v_a0 = a0;", "float v_a1 = a1;", "float v_a2;",
        "v_a2 = v_a0 * 0.5f;", "v_a1 = v_a1 + v_a2;", "a1 = v_a1;",
    ]  # fmt: skip


def test_what_another_program_may_read_is_stored():
    device, x, y, scratch = some(4)
    (group,) = grouped(device.calls([lambda: np.multiply(x, 0.5, out=scratch), lambda: np.add(y, scratch, out=y)]))
    assert "a2 = v_a2;" in kernel(group).code


def test_a_product_or_another_shape_begins_a_new_kernel():
    device, x, y, _ = some(4, 4)
    calls = device.calls([
        lambda: np.add(x, 1, out=x),
        lambda: x.dot(x, y),
        lambda: np.add(y, 1, out=y),
        lambda: np.add(y[0], 1, out=y[0]),
    ])  # fmt: skip
    assert [[call.name for call in group.calls] for group in grouped(calls)] == [["add"], ["matmul"], ["add"], ["add"]]


def test_the_same_numbers_in_another_order_begin_a_new_kernel():
    device, x, y, _ = some(4, 4)
    calls = device.calls([lambda: np.add(x, 1, out=x), lambda: np.add(y, x.T, out=y)])
    assert len(grouped(calls)) == 2


def test_a_condition_keeps_only_the_guarded_arrays():
    device, x, y, _ = some(4)
    condition = device.array(np.array(True))
    calls = device.calls([
        lambda: device.only_where(condition, [y]),
        lambda: np.add(x, 1, out=x),
        lambda: np.add(y, x, out=y),
        lambda: device.only_where(None, []),
        lambda: np.add(y, 1, out=y),
    ])  # fmt: skip
    assert [call.where is condition for call in calls] == [False, True, False]


def test_every_elementwise_function_has_an_expression_of_its_operands():
    for name, expression in EXPRESSIONS.items():
        function = getattr(np, name)
        count = function.nin if isinstance(function, np.ufunc) else 1
        assert expression.format(*(f"<{place}>" for place in range(count))).count("<0>") >= 1


def test_recording_ends_where_an_operation_fails():
    recorder = Recorder()

    def fail():
        raise KeyError

    try:
        recorder.record([fail])
    except KeyError:
        assert not recorder.takes(None)
