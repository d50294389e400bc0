"""The programs that `benchmark` times: ours and those of `benchmark_peers`, compiled, and PyTorch's.

A program is the value and gradient, or a training step with Adam whose state is donated. The gradient of
a step is read from Adam's first moment, m = (1 − b1) dE/dθ after one step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jax_bptt as jb
from experiments.support.benchmark_peers import OUTPUTS, PEERS, Peer, Problem, network_params, problem_of
from experiments.support.comparisons import seconds

LANES = {"float32": "highest", "tf32": "default", "bf16": "default"}  # the precision of products
AGREE = {"float32": 1e-4, "tf32": 1e-2, "bf16": 0.1, "float16": 0.1}  # the farthest that a gradient may be
RATE = 1e-4
B1 = 0.9


class Program(NamedTuple):
    """One program, ready to be called, and the gradient of its first call as arrays of NumPy."""

    call: Callable[[], Any]
    grads: Any
    compile_seconds: float | None
    temporaries: int | None


class Task(NamedTuple):
    """A program in JAX before it is compiled. A training step takes first what it returns first."""

    jitted: Any
    arguments: tuple[Any, ...]
    gradient: Callable[[Any], Any]  # from what it returns


def program_of(name: str, work: str, problem: Problem, for_cuda: bool = False) -> Program | None:
    """The program of a contender, called once; None where it has no such cell or lane."""
    if name == "scan in float32":
        return program_of("scan", work, problem._replace(lane="float32"), for_cuda)
    with jax.default_matmul_precision(LANES[problem.lane]):
        if name == "torch":
            return torch_program(work, problem)
        task = task_of(name, work, problem)
        return None if task is None else compiled(task, work == "step", for_cuda)()


def task_of(name: str, work: str, problem: Problem) -> Task | None:
    """The program of a contender in JAX, not yet compiled."""
    if name == "ours":
        return OURS[work](problem, jb.full())
    if name == "fastest":
        return OURS[work](problem, fastest_method(problem.cell, problem.size, problem.lane))
    peer = PEERS[name](problem)
    return None if peer is None else THEIRS[work](peer, problem)


def compiled(task: Task, chained: bool, for_cuda: bool = False) -> Callable[[], Program]:
    """A task compiled, to be called for the first time; lowered for CUDA as well where that is wanted."""
    if for_cuda:
        task.jitted.trace(*task.arguments).lower(lowering_platforms=("cuda",))
    began = time.perf_counter()
    run = task.jitted.lower(*task.arguments).compile()
    took = time.perf_counter() - began
    arguments = [*task.arguments]

    def call() -> Any:
        out = run(*arguments)
        if chained:
            arguments[0] = out[0]
        return out

    def first() -> Program:
        grads = jax.tree.map(np.asarray, task.gradient(call()))
        return Program(call, grads, took, run.memory_analysis().temp_size_in_bytes)

    return first


def of_adam(optimizer_state: Any) -> Any:
    """The gradient of the first step, from the moment that Adam made of it."""
    return jax.tree.map(lambda m: m / (1 - B1), optax.tree.get(optimizer_state, "mu"))


# Ours.


@functools.cache
def fastest_method(cell: str, size: tuple[int, ...], lane: str) -> jb.GradientMethod:
    """What jb.fastest finds; the lane's precision of products is that of the caller."""
    problem = problem_of(cell, size, lane)
    batch = jb.Batch(problem.xs, problem.targets)
    return jb.fastest(problem.net, jb.squared_error, batch, **our_dtype(problem)).gradient


def our_value_and_grad(problem: Problem, gradient: jb.GradientMethod, **marks: Array) -> Task:
    """jb.value_and_grad with this gradient method, and perhaps marks."""
    carry = problem.net.initial_carry(problem.params, problem.xs.shape[1:2])
    options = {"gradient": gradient, **our_dtype(problem), **marks}
    run = functools.partial(jb.value_and_grad(problem.net, jb.squared_error), **options)
    return Task(jax.jit(run), (problem.params, carry, problem.xs, problem.targets), lambda out: out[1])


def our_step(problem: Problem, gradient: jb.GradientMethod) -> Task:
    """jb.make_train_step."""
    options = {"gradient": gradient, **our_dtype(problem)}
    optimizer = optax.adam(RATE, B1)
    state = jb.init_train_state(jax.random.key(0), problem.net, optimizer, problem.xs.shape[1:2])
    state = state._replace(params=jax.tree.map(jnp.copy, problem.params))
    step = jb.make_train_step(problem.net, jb.squared_error, optimizer, **options)
    batch = jb.Batch(problem.xs, problem.targets)
    return Task(step, (state, batch), lambda out: of_adam(out[0].opt_state))


def our_dtype(problem: Problem) -> dict[str, Any]:
    """dtype=bfloat16 in the lane bf16."""
    return {"dtype": problem.dtype} if problem.lane == "bf16" else {}


# Theirs.


def their_value_and_grad(peer: Peer, problem: Problem) -> Task:
    """jax.value_and_grad of their error."""
    run = jax.jit(jax.value_and_grad(peer.error))
    return Task(run, (peer.weights, problem.xs, problem.targets), lambda out: peer.back(out[1]))


def their_step(peer: Peer, problem: Problem) -> Task:
    """One update of their weights by Adam, both donated."""
    optimizer = optax.adam(RATE, B1)

    def step(state: Any, xs: Array, targets: Array) -> Any:
        weights, moments = state
        error, grads = jax.value_and_grad(peer.error)(weights, xs, targets)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(weights, updates), moments), error

    weights = jax.tree.map(jnp.copy, peer.weights)
    arguments = (weights, optimizer.init(weights)), problem.xs, problem.targets
    return Task(jax.jit(step, donate_argnums=0), arguments, lambda out: peer.back(of_adam(out[0][1])))


# PyTorch.


def torch_program(work: str, problem: Problem) -> Program:
    """torch.nn, on the same device."""
    import torch

    def tensor(a: Any) -> Any:
        return torch.tensor(np.asarray(a)).to(device)

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda":
        tf32 = problem.lane == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    _, _, inputs, hidden = problem.size
    halves = {"bf16": torch.bfloat16, "float16": torch.float16}
    dtype = halves.get(problem.lane, torch.float32)
    cell, readout = problem.weights
    rnn = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[problem.cell](inputs, hidden)
    rnn.load_state_dict({key: torch.tensor(w) for key, w in jb.convert.to_torch(cell).items()})
    linear = torch.nn.Linear(hidden, OUTPUTS)
    linear.load_state_dict({"weight": tensor(readout.w_y.T), "bias": tensor(readout.b_y)})
    modules = torch.nn.ModuleList([rnn, linear]).to(device, dtype)
    adam = torch.optim.Adam(modules.parameters(), RATE, fused=True)
    xs, targets = tensor(problem.xs).to(dtype), tensor(problem.targets)

    def call() -> None:
        adam.zero_grad(set_to_none=True)
        ys = linear(rnn(xs)[0])
        ((targets - ys.float()) ** 2).sum().backward()
        if work == "step":
            adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    grads = {key: w.grad.float().cpu().numpy() for key, w in modules.named_parameters()}
    of_cell = {key.removeprefix("0."): d for key, d in grads.items() if key.startswith("0.")}
    if problem.cell != "gru":
        del of_cell["bias_hh_l0"]  # the same as that of the other
    of_readout = jb.ReadoutParams(grads["1.weight"].T, grads["1.bias"])
    return Program(call, network_params(jb.convert.from_torch(of_cell), of_readout), None, None)


def peak(lane: str, tiny: bool) -> float:
    """FLOP/s of the best product of two square matrices, summed in float32."""
    sides = (512, 1024, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    best = 0.0
    with jax.default_matmul_precision(LANES[lane]):
        for n in (64,) if tiny else sides:
            a = jnp.ones((n, n), jnp.bfloat16 if lane == "bf16" else jnp.float32)
            call = functools.partial(jax.jit(product).lower(a, a).compile(), a, a)
            took = min(seconds(call, 1) for _ in range(10))
            best = max(best, 2 * n**3 / took)
    return best


OURS = {"value_and_grad": our_value_and_grad, "step": our_step}
THEIRS = {"value_and_grad": their_value_and_grad, "step": their_step}
