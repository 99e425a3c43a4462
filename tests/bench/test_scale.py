"""What bench.scale reckons; what it measures takes processes of its own, and time."""

import argparse

import pytest

from bench import scale

ASSUMED = argparse.Namespace(processes=[1, 2], images=1000.0, within=100.0, between=10.0, latency=50.0, targets=10)


def test_a_queue():
    assert scale.queue([1.0] * 10, 1) == 10
    assert scale.queue([1.0] * 10, 8) == 2
    assert scale.queue([1.0] * 10, 64) == 1
    assert scale.queue([3.0, 1.0, 1.0, 1.0], 2) == 3  # the slow one's process takes no other
    assert scale.queue([1.0, 1.0, 1.0, 3.0], 2) == 4


def test_the_forecast():
    one, eight, many = (scale.forecast(ASSUMED, gpus) for gpus in (1, 8, 64))
    assert one == {"images_per_second": 1000, "efficiency": 1, "pool_speedup": 1}
    # 1,024 images; ResNet-18's 11,689,512 parameters, twice, 7/8 and 63/64 of them; 20 BatchNorm layers, two sums each
    compute, exchange, wait = 0.128, 2 * 4 * 11_689_512 * 7 / 8 / 100e9, 40 * 50e-6
    assert eight["images_per_second"] == pytest.approx(1024 / (compute + exchange + wait))
    assert eight["efficiency"] == pytest.approx(compute / (compute + exchange + wait)) and eight["pool_speedup"] == 5
    compute, exchange = 0.016, 2 * 4 * 11_689_512 * 63 / 64 / 10e9
    assert many["efficiency"] == pytest.approx(compute / (compute + exchange + wait)) and many["pool_speedup"] == 10


def test_the_table():
    row = {"step_ms": 10.0, "step_own_statistics_ms": 10.0, "allreduce_ms": 1.0, "take_us": 100.0, "pool_s": 8.0}
    rows = [row, row | {"step_ms": 8.0, "step_own_statistics_ms": 5.0, "pool_s": 4.0}]
    said = scale.table(ASSUMED, rows, [scale.forecast(ASSUMED, gpus) for gpus in (1, 8, 64)])
    assert "| 2 | 8 | 62% | 5 | 100% | 4 | 100% | 1 | 100 |" in said
    assert "Forecast, not measured: 1,000 images a second" in said and "| 1 | 1,000 | 100% | 1.0 |" in said
