"""The public checker and the tests' own witnesses catch every mistake and name the leaves it spoils."""

import jax
import jax.numpy as jnp
import mutations
import pytest
import support.witnesses as w
from cases import CELLS, EXACT, KINDS, make
from support.bodies import BODIES
from support.body import OF_ALL
from support.scan_programs import PLAIN, differences, result_of, scan_of

import jax_bptt as jb
from jax_bptt.gradients.independence import check_independence

MUTATIONS = mutations.MUTATIONS
FIRST = {mutation: next(name for m, name in mutations.PAIRS if m == mutation) for mutation in MUTATIONS}
SOME = {*FIRST.items(), *mutations.PAIRS[::10]}  # every mistake and every cell


@pytest.mark.parametrize("name", KINDS)
def test_check_gradient_catches_every_mistake_and_names_its_leaves(name):
    """In one test for each cell, since the programs of the witnesses are those of the cell."""
    found = {m: mutations.report(MUTATIONS[m], name) for m in MUTATIONS if (m, name) in SOME}
    marks = next(MUTATIONS[m].marks for m in found)
    right = mutations.Mutation(mutations._backward(), lambda name: set(), marks)
    assert mutations.report(right, name).ok  # the mutations start from a right backward pass
    assert not [mistake for mistake, report in found.items() if report.ok]
    named = {mistake: set(report.wrong) for mistake, report in found.items()}
    assert named == {mistake: MUTATIONS[mistake].spoiled(name) for mistake in found}


@pytest.mark.parametrize("name", KINDS)
def test_every_mistake_spoils_the_leaves_that_it_says_in_every_cell(name):
    """All pairs of a mistake and a cell: what the public checker is asked above for a part of them."""
    for marks in sorted({mutation.marks for mutation in MUTATIONS.values()}):
        mistakes = [m for m, n in mutations.PAIRS if n == name and MUTATIONS[m].marks == marks]
        case = make(name, mutations.STEPS, (mutations.ROWS,))
        case = case._replace(marks={mark: mutations.PATTERNS[mark] for mark in marks})
        wanted = w.by_autodiff(case)
        gradients = w.by_hand(case, [mutations.method(MUTATIONS[m]) for m in mistakes])
        found = {m: set(w.wrong(of, wanted, 1e-12)) for m, of in zip(mistakes, gradients, strict=True)}
        assert found == {m: MUTATIONS[m].spoiled(name) for m in mistakes}


CASES = sorted({(name, MUTATIONS[mutation].marks) for mutation, name in FIRST.items()})


@pytest.mark.parametrize(("name", "marks"), CASES)
def test_the_tests_own_witnesses_catch_every_mistake(name, marks):
    """Every mistake for the first cell that it can be made in."""
    case = make(name, 6, (4,), marks=marks)
    witnesses = [(w.by_autodiff(case), 1e-12), (w.by_complex_step(case), 1e-12)]
    if "cut" not in marks:
        witnesses += [(w.by_forward_mode(case), 1e-12), (w.by_differences(case), 1e-7)]
    mistakes = [m for m, first in FIRST.items() if (first, MUTATIONS[m].marks) == (name, marks)]
    methods = [mutations.method(MUTATIONS[m]) for m in mistakes]
    for mistake, found in zip(mistakes, w.by_hand(case, methods), strict=True):
        for wanted, limit in witnesses:
            assert set(w.wrong(found, wanted, limit)) == MUTATIONS[mistake].spoiled(name), mistake
        assert w.broken_identity(case, found, 1e-12), mistake


@pytest.mark.parametrize("marks", [(), ("mask",), ("reset",), ("cut",)])
def test_the_comparison_with_lax_scan_catches_every_mistake(marks):
    """And says which arguments of the scan have a wrong gradient; all outputs are right."""
    body, given = BODIES["y reads both carries"], {mark: OF_ALL[mark] for mark in marks}
    mistakes = {n: (back, spoiled) for n, (back, spoiled, of) in mutations.OF_SCANS.items() if of == marks}

    @jax.jit
    def run(*args):
        methods = {n: jb.full()._replace(name="mutated", backward=back) for n, (back, _) in mistakes.items()}
        ours = {n: result_of(jb.scan, body, args, gradient=method, **given) for n, method in methods.items()}
        return result_of(scan_of(PLAIN), body, args, **given), ours

    wanted, ours = run(body.weights, body.init, body.xs)
    names = dict(zip([f".gradient[{i}]" for i in range(5)], [*["weights"] * 3, "init", "xs"], strict=True))
    for name, (_, spoiled) in mistakes.items():
        wrong = [line.partition(":")[0] for line in differences(ours[name], wanted, 1e-12)]
        assert wrong == [leaf for leaf, of in names.items() if of in spoiled], name


GATED = [name for name in KINDS if len(CELLS[name].cell.gate_names) > 1]


@pytest.mark.parametrize("name", GATED)
def test_the_gate_and_the_step_are_named(name):
    names, hidden = CELLS[name].cell.gate_names, CELLS[name].cell.hidden_size

    def spoil(gradient):
        d_w_h = gradient.params.w_h.at[:, hidden : 2 * hidden].multiply(1.001)
        d_params = gradient.params._replace(w_h=d_w_h)
        return gradient._replace(params=d_params, xs=gradient.xs.at[3].multiply(0.999))

    mutation = mutations.Mutation(mutations._backward(of_gradient=spoil), lambda name: set())
    wrong = [(line.leaf, line.part) for line in mutations.report(mutation, name).lines if not line.ok]
    assert wrong == [("params.w_h", f"gate {names[1]}"), ("xs", "step 3")]


def test_check_cell_catches_a_wrong_adjoint():
    """A cell whose adjoint forgets 1 − α: the leak's own way back."""
    leaky = jb.leaky(3, 4, rate=0.3)

    def adjoint(units, a, lam):
        towards = leaky.adjoint(units, a, lam)
        return towards._replace(carry=lam)

    report = jb.check_cell(leaky._replace(adjoint=adjoint))
    assert not report.ok
    assert report.wrong[0] == "carry.h"  # at one step nothing else is wrong
    assert "the gradient is WRONG: carry.h (1 steps)" in str(report)


def _mixing(mixed):
    """A pointwise cell whose units, or rows, read each other against the rules."""
    return jb.make_cell(3, 4, lambda units, s, u, v: jb.Carry(jnp.tanh(mixed(s.h, u[0] + v[0]))))


MIXING = {
    "roll": _mixing(lambda h, z: z + 0.5 * jnp.roll(h, 1, -1)),
    "mean over units": _mixing(lambda h, z: z - z.mean(-1, keepdims=True)),
    "softmax over units": _mixing(lambda h, z: 3 * jax.nn.softmax(z)),
    "matmul": _mixing(lambda h, z: z + h @ jnp.full((4, 4), 0.2, h.dtype)),
    "swapped neighbours": _mixing(lambda h, z: z + h[..., jnp.array([1, 0, 3, 2])]),
}


def _of_mixing(cell, gradient):
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 2, 3))
    return jax.jit(jax.grad(lambda p: (jb.unroll(cell, p, None, xs, gradient=gradient)[1] ** 2).sum()))(
        params
    )


@pytest.mark.parametrize("name", MIXING)
def test_units_that_read_each_other_are_noticed(name):
    """The loops are right even so; what takes Jacobians unit by unit would be wrong, and refuses."""
    cell, message = MIXING[name], "step: .*got units that read each other; use jb.step_cell"
    assert not w.wrong(_of_mixing(cell, jb.full()), _of_mixing(cell, jb.autodiff()), 1e-12)
    for refuse in (jb.check_cell, lambda c: _of_mixing(c, jb.parallel())):
        with pytest.raises(ValueError, match=message):
            refuse(cell)


def test_every_user_of_jacobians_unit_by_unit_refuses():
    cell = MIXING["roll"]
    params, xs = cell.init(jax.random.key(0)), jnp.ones((3, 2, 3))
    with pytest.raises(ValueError, match=r"unroll_by_newton: step: .*units that read each other"):
        jb.unroll_by_newton(cell, params, None, xs, newton=jb.newton(diagonal=True))
    net = jb.network([cell], jb.readout(4, 1))
    with pytest.raises(ValueError, match=r"gradient_flow: step: .*units that read each other"):
        jb.gradient_flow(net, jb.squared_error, net.init(jax.random.key(0)), None, xs, jnp.ones((3, 2, 1)))


def test_rows_that_read_each_other_are_noticed_by_parallel():
    cell = _mixing(lambda h, z: z - (z.mean(0, keepdims=True) if z.ndim > 1 else z))
    with pytest.raises(ValueError, match=r"step: .*got rows that read each other; write the step"):
        _of_mixing(cell, jb.parallel())


@pytest.mark.parametrize("name", [name for name in CELLS if isinstance(CELLS[name].cell, jb.Cell)])
def test_no_pointwise_cell_is_taken_for_another(name):
    check_independence(CELLS[name].cell, jnp.dtype("float32"))


def test_a_truncated_gradient_is_no_exact_one():
    """As if the chunks of full() forgot what came from behind: everything but the last chunk is wrong."""
    report = jb.check_gradient(jb.lstm(3, 4), gradient=jb.truncated(2))
    assert not report.ok
    assert set(report.wrong) == {"params.w_x", "params.w_h", "params.b", "carry.h", "carry.c", "xs"}
    assert jb.check_gradient(jb.lstm(3, 4), gradient=jb.truncated(5)).ok


@pytest.mark.parametrize("name", ["checkpointed", "rtrl", "parallel"])
def test_exact_methods_pass_the_public_checker(name):
    net = jb.network([jb.gru(3, 4), jb.lstm(4, 3)], jb.readout(3, 2))
    mask = jnp.arange(10).reshape(5, 2) % 4 != 1
    assert jb.check_gradient(net, gradient=EXACT[name], mask=mask).ok


def test_a_wrong_forward_pass_is_named():
    method = jb.full()

    def forward(*args):
        outputs, kept = method.forward(*args)
        return outputs._replace(ys=outputs.ys * (1 + 1e-9)), kept

    report = jb.check_gradient(jb.gru(3, 4), gradient=method._replace(name="wrong", forward=forward))
    assert report.wrong == ("outputs",)


def test_a_gradient_that_is_zero_by_right_is_said_to_be_unproved():
    cell = jb.learn_carry(jb.elman(2, 3))
    report = jb.check_gradient(cell)
    assert report.ok
    assert str(report).endswith("zero by right, so not proved: params.h_0")
    begun = jb.check_gradient(cell, reset=jnp.ones((5, 2), bool))
    assert begun.ok
    assert str(begun).endswith("zero by right, so not proved: carry.h")


def test_a_chaotic_network_is_not_called_wrong():
    """Differences disagree with themselves there, and are left out."""
    report = jb.check_gradient(jb.elman(3, 16, recurrent=jb.orthogonal(3.0)), steps=25)
    assert report.ok
    lines = {line.leaf: line for line in report.lines}
    assert lines["params.w_h"].ratios[1] is None
    assert lines["params.w_h"].ratios[2] < 1e-12


def _tanh_with_slope(slope):
    @jax.custom_vjp
    def f(z):
        return jnp.tanh(z)

    f.defvjp(lambda z: (jnp.tanh(z), z), lambda z, d: (d * slope(z),))
    return f


def test_a_custom_vjp_inside_a_step_is_checked_by_differences():
    right = jb.check_gradient(jb.elman(2, 3, activation=_tanh_with_slope(lambda z: 1 - jnp.tanh(z) ** 2)))
    assert right.ok
    assert all(line.ratios[2] is None for line in right.lines)
    wrong = jb.check_gradient(jb.elman(2, 3, activation=_tanh_with_slope(lambda z: 1 - jnp.tanh(z) ** 3)))
    assert not wrong.ok


def test_under_an_empty_mask_nothing_is_proved():
    report = jb.check_gradient(jb.gru(2, 3), mask=jnp.zeros((5, 2), bool))
    assert not report.ok
    assert not report.wrong
    assert "nothing is proved" in str(report)


def test_a_gradient_that_is_zero_up_to_rounding_is_not_called_wrong():
    """A bias common to all units, before their mean is taken off."""

    def step(p, s, x):
        z = x @ p["w"] + s.h + p["b"]
        return jb.Carry(jnp.tanh(z - z.mean()))

    cell = jb.step_cell(3, 4, step, lambda key: {"w": jax.random.normal(key, (3, 4)), "b": jnp.ones(1)})
    report = jb.check_gradient(cell)
    assert report.ok
    assert "not proved: params['b']" in str(report)


def test_parameters_that_are_one_array_can_be_checked():
    """A leaf without a name has no gates, whatever its width."""

    def step(w, s, x):
        return jb.Carry(jnp.tanh(x + (s.h @ w)[:3] * (s.h @ w)[3:]))

    cell = jb.step_cell(3, 3, step, lambda key: jax.random.normal(key, (3, 6)), gates=("a", "b"))
    assert jb.check_gradient(cell).ok
