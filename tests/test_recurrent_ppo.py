"""The T-maze keeps its rules, PPO its equations; the script ends, resumes and judges rightly."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import recurrent_ppo
from experiments.support import ppo, ppo_agents, t_maze
from experiments.support.t_maze import FORWARD, LEFT, RIGHT, Lengths

LENGTHS = Lengths(2, 4)
TINY = recurrent_ppo.Config(shortest=1, longest=2, hidden=3, iterations=4, every=2, rows=4, steps=5, epochs=1)


def _walk(rows, steps):
    """Mazes before each step, actions that are mostly forward, and what the steps gave."""
    of_begin, of_actions, of_steps = jax.random.split(jax.random.key(0), 3)
    begin = jax.vmap(functools.partial(t_maze.begin, lengths=LENGTHS))(jax.random.split(of_begin, rows))
    odds = jnp.log(jnp.array([0.7, 0.15, 0.15]))
    actions = jax.random.categorical(of_actions, odds, shape=(steps, rows))
    move = jax.vmap(functools.partial(t_maze.step, lengths=LENGTHS))

    def step(maze, now):
        action, key = now
        after, percept, outcome = move(maze, action, jax.random.split(key, rows))
        return after, (maze, after, percept, outcome)

    found = jax.lax.scan(step, begin, (actions, jax.random.split(of_steps, steps)))[1]
    return np.asarray(actions), jax.tree.map(np.asarray, found)


def test_the_maze_keeps_its_rules():
    """Every step again in plain Python."""
    actions, (before, after, percept, outcome) = _walk(100, 60)
    endings = set()
    for t, b in np.ndindex(actions.shape):
        cue, length, place, steps = (int(z[t, b]) for z in before)
        action, chosen = actions[t, b], place == length and actions[t, b] != FORWARD
        right = chosen and action == cue
        late = steps + 1 >= 3 * (length + 1)
        place += action == FORWARD and place < length
        moved = place != before.place[t, b]
        reward = float(right) if chosen else 0.0 if moved else -0.1
        ended = chosen or late
        assert (outcome.reward[t, b], outcome.ended[t, b], outcome.right[t, b]) == (reward, ended, right)
        if ended:
            endings.add((chosen, right))
            assert (after.place[t, b], after.steps[t, b]) == (0, 0)
            place, action, reward = 0, t_maze.NONE, 0.0
        else:
            assert tuple(z[t, b] for z in after) == (cue, length, place, steps + 1)
        junction = place == after.length[t, b]
        now = [place == 0 and after.cue[t, b] == side for side in (LEFT, RIGHT)]
        assert percept.seen[t, b].tolist() == [*now, place > 0 and not junction, junction]
        assert (percept.action[t, b], percept.reward[t, b]) == (action, reward)
    assert endings == {(True, True), (True, False), (False, False)}
    began = outcome.ended
    assert set(after.length[began]) == {2, 3, 4}
    assert abs(np.mean(after.cue[began] == LEFT) - 0.5) < 4 * 0.5 / math.sqrt(began.sum())


def test_what_is_read_behind_the_entrance_does_not_depend_on_the_cue():
    """So an agent without memory is right in half of the episodes at most; at the entrance it does."""
    pair = [t_maze.Maze(*map(jnp.asarray, (cue, 2, 0, 0))) for cue in (LEFT, RIGHT)]
    seen = [[t_maze.first_percept(maze).seen.tolist()] for maze in pair]
    for action in (LEFT, FORWARD, RIGHT, FORWARD, FORWARD):
        for i, maze in enumerate(pair):
            pair[i], outcome = t_maze.act(maze, jnp.asarray(action))
            seen[i].append((t_maze.look(pair[i]).tolist(), float(outcome.reward), bool(outcome.ended)))
    left, right = seen
    entrance = [i for i in range(len(left)) if left[i] != right[i]]
    assert entrance == [0, 1]  # the first step, to the left, led nowhere
    assert left[-1] == ([0, 0, 0, 1], pytest.approx(-0.1), False)


# PPO.


def _random(*shapes):
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape) for shape in shapes]


def test_advantages_by_a_loop():
    rewards, values, last = _random((7, 3), (7, 3), (3,))
    ended = np.random.default_rng(1).uniform(size=(7, 3)) < 0.3
    wanted, advantage, later = np.zeros((7, 3)), np.zeros(3), last
    for t in reversed(range(7)):
        for b in range(3):
            goes_on = 0.0 if ended[t, b] else 1.0
            delta = rewards[t, b] + 0.99 * goes_on * later[b] - values[t, b]
            advantage[b] = delta + 0.99 * 0.95 * goes_on * advantage[b]
        wanted[t], later = advantage, values[t]
    found = ppo.advantages(*map(jnp.asarray, (rewards, values, last, ended)))
    assert np.allclose(found, wanted, rtol=1e-13)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1.0, 1.1, True), (1.0, 1.3, False), (-1.0, 0.9, True), (-1.0, 0.7, False), (-1.0, 1.3, True)],
)
def test_the_error_of_a_step(advantage, ratio, moves):
    """By hand; and a ratio that has gone far enough is not moved further."""
    logits, value, gain, action = np.array([0.3, -0.2, 0.5]), 0.4, 1.5, 2
    p = np.exp(logits) / np.exp(logits).sum()
    target = ppo.Target(jnp.asarray(action), jnp.log(p[action] / ratio), jnp.asarray(advantage), gain)
    said = ppo.Said(jnp.asarray(logits), jnp.asarray(value))
    least = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    wanted = -least + 0.25 * (value - gain) ** 2 + 0.01 * (p * np.log(p)).sum()
    assert abs(ppo.error(said, target) - wanted) < 1e-14

    def without_entropy(logits):
        entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits))
        return ppo.error(said._replace(logits=logits), target) + ppo.ENTROPY_GAIN * entropy

    assert (np.abs(jax.grad(without_entropy)(said.logits)).max() > 1e-12) == moves


HOW = recurrent_ppo.training(TINY)._replace(steps=10, parts=2)
NET = ppo_agents.network("gru", 3)


@pytest.fixture(scope="module")
def acted():
    """The state of our agent after 10 steps, and these steps."""
    agent = ppo_agents.agent(NET)
    return jax.jit(functools.partial(ppo.act, agent, HOW))(ppo.begin(agent, HOW, 0), jax.random.key(1))


def test_what_is_learnt_from_is_what_was_said(acted):
    """The rows, carries and resets of an update give the log p of acting step by step; zeros do not."""

    def differences(params, carry, percepts, target, begins):
        of_carries = []
        for begin in (carry, jax.tree.map(jnp.zeros_like, carry)):
            _, said = NET.apply(params, begin, percepts, reset=begins)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(said.logits), target.action[..., None], -1)[..., 0]
            of_carries.append(jnp.abs(log_p - target.log_p).max())
        return jnp.stack(of_carries), jax.tree.map(jnp.zeros_like, params)

    agent = ppo_agents.agent(NET)._replace(learn=differences)
    state, steps = acted
    assert not state.begins.all()
    assert np.array_equal(steps.begins, steps.percept.action == t_maze.NONE)
    assert (steps.outcome.ended & ~steps.outcome.right).any()
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        _, report = jax.jit(functools.partial(ppo.iterate, agent, HOW))(state)
    right, wrong = report.loss
    assert right < 1e-13 < 1e-6 < wrong


def test_flax_learns_the_same(acted):
    pytest.importorskip("flax")
    from experiments.support import ppo_in_flax

    state, steps = acted
    ours, theirs = ppo_agents.agent(NET), ppo_in_flax.agent(NET, 3)
    target = ppo.Target(steps.action, 0.1 + steps.log_p, steps.value, 1 + steps.value)
    found, grads = ours.learn(state.params, state.carry, steps.percept, target, steps.begins)
    params = ppo_in_flax.from_ours(state.params)
    with jax.numpy_dtype_promotion("standard"):  # the zeros that theirs begins with are float32
        wanted, slope = theirs.learn(params, state.carry[0].h, steps.percept, target, steps.begins)
    assert abs(found - wanted) < 1e-12
    for ours_of, theirs_of in (
        (grads.readout.logits, slope["params"]["logits"]["kernel"]),
        (grads.encoder.action, slope["params"]["action"]["embedding"]),
        (grads.cells[0].w_h[:, :3], slope["params"]["gru"]["GRUCell_0"]["hr"]["kernel"]),
    ):
        assert np.linalg.norm(ours_of - theirs_of) < 1e-12 * np.linalg.norm(theirs_of)


# The script.


@pytest.fixture
def _ours_alone(monkeypatch):
    """One program is compiled in the place of two or three."""
    agents = recurrent_ppo.agents
    monkeypatch.setattr(recurrent_ppo, "has_flax", lambda: False)
    monkeypatch.setattr(recurrent_ppo, "agents", lambda config: dict([*agents(config).items()][:1]))


@pytest.mark.usefixtures("_ours_alone")
def test_a_run_ends_and_after_a_kill_it_does_the_rest(tmp_path, capsys, monkeypatch):
    compiled = functools.cache(ppo.compiled)  # once for both runs
    monkeypatch.setattr(ppo, "compiled", compiled)
    monkeypatch.setattr(recurrent_ppo, "agents", functools.cache(recurrent_ppo.agents))
    config = recurrent_ppo.Config(**{**vars(TINY), "seeds": 1, "out": tmp_path})
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        recurrent_ppo.main(config)
        _, flax, first, last = capsys.readouterr().out.splitlines()
        assert flax.startswith("flax is not installed")
        assert first.startswith("episodes right in the last 2 iterations, GRU: ")
        assert last.startswith("recurrent_ppo: 0 of 1 results are as expected")
        assert (tmp_path / "recurrent_ppo.png").stat().st_size > 10_000
        whole = _lines(tmp_path)
        newest = tmp_path / "checkpoints" / "seed_0" / "4"
        shutil.rmtree(newest)
        recurrent_ppo.main(config)
    assert _lines(tmp_path) == whole
    assert newest.exists()


def _lines(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{**line, "took": None} for line in lines]


def _judged(ours=0.99, without=0.5, flax=0.99, took=1.0):
    ends = {"GRU": ours, "without memory": without, "GRU in flax": flax}
    curves = {
        name: [[{"step": 10, "right": 0.96, "took": 1.0}, {"step": 20, "right": right, "took": 1.0}]]
        for name, right in ends.items()
    }
    curves["GRU"] += [[{"step": 10, "right": 0.99, "took": took}, {"step": 20, "right": 0.99, "took": took}]]
    curves["GRU in flax"] += curves["GRU in flax"]
    return recurrent_ppo.judge(TINY, curves)


@pytest.mark.parametrize(
    ("spoiled", "row"),
    [
        ({"ours": 0.9}, 0),
        ({"ours": math.nan}, 0),
        ({"without": 0.7}, 1),
        ({"flax": 0.5}, 2),
        ({"took": 1.2}, 3),
    ],
)
def test_what_is_not_as_expected_is_seen(spoiled, row):
    assert all(r.met for r in _judged())
    assert [r.met for r in _judged(**spoiled)] == [i != row for i in range(4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"longest": 9}, "--longest 9: give a number of at least 10"),
        ({"parts": 3}, "--parts 3: give a divisor of the 64 rows"),
        ({"every": 7}, "--iterations 300: give a multiple of the 7 of a round"),
        ({"learning_rate": math.nan}, "--learning-rate nan: give a positive number"),
    ],
)
def test_bad_options_are_refused(change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        recurrent_ppo.main(recurrent_ppo.Config(out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()
