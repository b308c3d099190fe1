"""Watermarks: worked examples of the kernel's formula, and small zones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.scheduler.watermark import Watermarks, host_watermarks, min_free_kbytes, zone_watermarks


@pytest.mark.parametrize(
    ("lowmem_pages", "kbytes"),
    [
        (1 << 16, 2048),  # 256 MiB: 4 * sqrt(262144)
        (1 << 20, 8192),  # 4 GiB
        (256, 128),  # 1 MiB: the lower bound
        (1 << 32, 262144),  # 16 TiB: the upper bound
    ],
)
def test_min_free_kbytes(lowmem_pages, kbytes):
    assert min_free_kbytes(lowmem_pages) == kbytes


def test_one_zone_of_4_gib():
    assert zone_watermarks(1 << 20, 1 << 20, movable=False) == Watermarks(2048, 3096, 4144, 5192)


def test_scale_factor_widens_the_gap():
    assert zone_watermarks(1 << 20, 1 << 20, False, scale_factor=100) == Watermarks(2048, 12533, 23018, 33503)


def test_movable_zone_has_a_fixed_minimum():
    assert zone_watermarks(1 << 20, 1 << 20, movable=True).min_pages == 128
    assert zone_watermarks(1 << 16, 1 << 20, movable=True).min_pages == 64
    assert zone_watermarks(1 << 12, 1 << 20, movable=True).min_pages == 32


def test_a_host_of_8_mib_zones():
    marks = host_watermarks({0: 2048, 1: 2048, 2: 1024, 3: 0}, movable=0b1100)
    assert marks == {
        0: Watermarks(64, 80, 96, 112),
        1: Watermarks(64, 80, 96, 112),
        2: Watermarks(32, 40, 48, 56),
        3: Watermarks(0, 0, 0, 0),
    }


def test_user_set_min_free_kbytes():
    assert zone_watermarks(1 << 16, 1 << 17, False, min_free_kb=8192).min_pages == 1024


@given(st.integers(0, 1 << 24), st.integers(0, 1 << 24), st.booleans(), st.integers(1, 1000))
def test_marks_are_ordered_and_leave_pages(managed, other, movable, scale):
    lowmem = other if movable else managed + other
    marks = zone_watermarks(managed, lowmem, movable, scale)
    assert 0 <= marks.min_pages <= marks.low_pages <= marks.high_pages <= marks.promo_pages
    assert marks.promo_pages * 8 <= managed * 5
