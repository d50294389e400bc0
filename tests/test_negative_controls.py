"""The witnesses catch every mutation and name exactly the leaves that it spoils."""

import mutations
import pytest
import witnesses as w
from cases import make

import jax_bptt as jb

MUTATIONS = mutations.MUTATIONS


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_caught_and_its_leaves_are_named(name):
    mutation = MUTATIONS[name]
    case = make(mutation.cell, 5, (2,))
    found = w.manual(case, mutations.method(mutation))
    assert set(w.wrong(found, w.by_autodiff(case), 1e-12)) == mutation.spoiled
    assert set(w.wrong(found, w.by_forward_mode(case), 1e-12)) == mutation.spoiled
    assert set(w.wrong(found, w.by_complex_step(case), 1e-12)) == mutation.spoiled
    assert set(w.wrong(found, w.by_differences(case), 1e-7)) == mutation.spoiled
    assert w.broken_identity(case, found, 1e-12)


@pytest.mark.parametrize("cell", sorted({m.cell for m in MUTATIONS.values()}))
def test_the_unmutated_copy_passes(cell):
    """The mutations start from a right backward pass."""
    case = make(cell, 5, (2,))
    right = jb.full()._replace(name="copy", backward=mutations._backward())
    assert not w.wrong(w.manual(case, right), w.by_autodiff(case), 1e-12)
