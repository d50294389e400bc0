"""The number of bytes that devices send agrees with the formulas."""

import re
import types

import jax
import pytest

from experiments import scaling
from experiments.support.collectives import Collective, collectives

CONFIG = scaling.Config(steps=5, rows=2, inputs=3, hidden=8, outputs=4)


@pytest.mark.parametrize("name", scaling.PROGRAMS)
def test_a_program_sends_what_its_formula_says(name):
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):  # as a script has it
        found = scaling.counted(CONFIG, name, jax.make_mesh((4,), ("data",))).sent
    wanted = scaling.formula(CONFIG, name, 4)
    assert sum(c.sent(4) for c in found) == pytest.approx(sum(c.sent(4) for c in wanted), rel=1e-9)
    inside, outside = scaling.split(found)
    assert (inside, outside) == {
        "ours": (0, 1),
        "fully sharded": (0, outside),
        "plain scan": (5, 1),  # in its program for CPUs; in that for GPUs XLA moves the sum out of the loop
        "hidden units": (10, 1),
    }[name]


def test_the_page_calculates_no_time_for_a_program_that_it_counts_on_cpus_only():
    found = {name: {n: scaling.Counted([], None) for n in scaling.SIMULATED} for name in scaling.PROGRAMS}
    counted, calculated = scaling.page(CONFIG, found, {}).split("\nCalculated, not measured")
    assert f"programs that JAX {jax.__version__} compiled for CPUs" in counted
    assert "\n| plain scan |" in counted
    assert "plain scan" not in calculated
    assert re.findall(r"^\| (\w[\w ]*) \| \d", calculated, re.M) == list(scaling.CALCULATED)


def test_what_does_not_communicate_keeps_its_speed():
    assert scaling.seconds(CONFIG, [], 4096) == scaling.seconds(CONFIG, [], 1)
    once, always = (scaling.efficiency(CONFIG, name, 4096) for name in ("ours", "hidden units"))
    assert always < once < 1


def test_a_collective_in_a_loop_within_a_loop_counts_as_often_as_it_runs():
    text = """HloModule m

%inner (p: f32[2]) -> f32[2] {
  %r = (f32[2,3]{1,0}, /*index=1*/pred[4]{0}) all-reduce(%p, %q), to_apply=%add
}

%outer (p: f32[2]) -> f32[2] {
  %w = f32[2] while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %g = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%p), dimensions={0}
  %s = ((f32[8]{0}, f32[2]{0}), (f32[4]{0}, f32[1]{0})) reduce-scatter-start(%p, %q), dimensions={0}
  %w = f32[2] while(%p), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
}
"""
    found = collectives(types.SimpleNamespace(as_text=lambda: text))
    entry = [Collective("all-gather", 16, 1, False), Collective("reduce-scatter", 20, 1, False)]
    assert found == [*entry, Collective("all-reduce", 28, 15, True)]
    unknown = text.replace("known_trip_count", "other")
    with pytest.raises(ValueError, match="a loop of unknown length holds all-reduce"):
        collectives(types.SimpleNamespace(as_text=lambda: unknown))


def test_bytes_that_a_ring_sends():
    assert Collective("all-reduce", 100, 3, True).sent(4) == 3 * 2 * 0.75 * 100
    assert Collective("all-gather", 100, 1, False).sent(4) == 75
    assert Collective("reduce-scatter", 25, 1, False).sent(4) == 75
