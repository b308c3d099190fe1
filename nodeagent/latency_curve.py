"""Latency under load, by the share of the bandwidth that is used. All integer.

A curve is pairs of (utilisation of the bandwidth in percent, latency in thousandths of the idle one), rising
from 0. Those of Mess (MICRO'24) are its published pairs of both (github.com/bsc-mem/Mess-simulator,
memory_curve/), each divided by the curve's greatest bandwidth and its latency at rest. The last point is the
worst that was measured; whoever asks for more than the bandwidth waits longer still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Curve: TypeAlias = tuple[tuple[int, int], ...]

_S_NS = 1_000_000_000
#: No latency grows beyond this.
_LONGEST_NS = _S_NS

#: Mess, Graviton3, 8 channels of DDR5-4800, 100 % reads: 98.0 ns at rest, 284.5 GB/s at most.
DDR5_CURVE: Curve = (
    (0, 1000), (25, 1052), (50, 1148), (60, 1216), (70, 1301), (80, 1412),
    (85, 1505), (90, 1679), (95, 1906), (98, 2240), (100, 3139),
)  # fmt: skip
#: Mess, CXL expander (its manufacturer's model), 90 % reads: 107.4 ns at rest, 29.5 GB/s at most.
CXL_CURVE: Curve = (
    (0, 1000), (22, 1014), (43, 1032), (62, 1057), (72, 1075), (80, 1096),
    (87, 1123), (94, 1185), (98, 1300), (100, 5387),
)  # fmt: skip
#: Mess, A64FX, HBM2, 100 % reads: 111.9 ns at rest, 942.6 GB/s at most.
HBM2_CURVE: Curve = (
    (0, 1000), (25, 1064), (40, 1099), (50, 1142), (60, 1179), (72, 1284),
    (79, 1345), (88, 1404), (98, 1619), (100, 2805),
)  # fmt: skip


def queue_curve(service_ns: int, idle_ns: int, worst_permille: int = 5000) -> Curve:
    """The mean of an M/D/1 queue: requests that come at random wait u / (2 (1 - u)) of a service's time for those
    before them. The wait has no bound; the curve ends at `worst_permille`.
    """
    points = [
        (u, min(worst_permille, 1000 + 1000 * service_ns * u // (2 * (100 - u) * idle_ns)))
        for u in (0, 30, 50, 70, 80, 90, 95, 98)
    ]
    return (*points, (100, worst_permille))


def inflation_permille(curve: Sequence[Sequence[int]], utilisation_permille: int) -> int:
    """The curve at a utilisation, linear between its points; beyond its last one the last value."""
    before = curve[0]
    for point in curve[1:]:
        if utilisation_permille < point[0] * 10:
            span = (point[0] - before[0]) * 10
            into = max(0, utilisation_permille - before[0] * 10)
            return before[1] + (point[1] - before[1]) * into // span
        before = point
    return before[1]


def loaded_latency_ns(
    base_ns: int,
    bytes_in_epoch: int,
    epoch_ns: int,
    bandwidth: int,
    curve: Sequence[Sequence[int]],
    before_ns: int | None = None,
    rest_ns: int = 0,
) -> int:
    """Latency after an epoch in which so many bytes were moved at a latency of `before_ns` (idle by default);
    `bandwidth` in bytes per second. `rest_ns` is what an access waits for elsewhere.

    Who waits for memory asks for less when it is slower. So the answer is where the curve meets that
    demand: the least latency L with curve(utilisation * (before + rest) / (L + rest)) <= L and no more bytes
    than the bandwidth allows. Setting the curve's value at the utilisation that was seen would swing between
    idle and the worst near saturation, where curves are steep. A demand that does not depend on the latency
    reaches the curve over a few epochs; over a hundred on the cliff at its end.
    """
    before = base_ns if before_ns is None else before_ns
    demand = bytes_in_epoch * _S_NS * 1000 * (before + rest_ns)
    capacity = bandwidth * epoch_ns
    saturated = min(_LONGEST_NS, -(-demand // (capacity * 1000)) - rest_ns)
    low, high = base_ns, max(base_ns, base_ns * curve[-1][1] // 1000, saturated)
    while low < high:
        middle = (low + high) // 2
        utilisation_permille = demand // (capacity * (middle + rest_ns))
        wanted = base_ns * inflation_permille(curve, utilisation_permille) // 1000
        if wanted <= middle and middle >= saturated:
            high = middle
        else:
            low = middle + 1
    return low
