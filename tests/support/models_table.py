"""The arguments of what makes an encoder, a head, a dense layer and a tied readout, with right values."""

import jax.numpy as jnp
from cases import H, I

import jax_bptt as jb
import support.argument_kinds as k
from support import reference_calls as calls
from support.factories_table import ACTIVATION
from support.reference_calls import KEY, O, text_of


def _of_words(**given):
    """The gradient of a network with this embedding, or with this tied readout."""
    vocabulary = given["vocabulary"]
    encoder = jb.embedding(vocabulary, given.get("size", H))
    on_top = jb.tied_readout(**given) if "size" not in given else jb.readout(H, O)
    net = jb.network([jb.elman(encoder.size, H)], on_top, encoder)
    run = jb.value_and_grad(net, jb.softmax_cross_entropy)
    ids = jnp.zeros(2, int)
    return text_of(lambda key, xs, targets: run(net.init(key), None, xs, targets), KEY, ids, ids)


def _encode(params, x):
    return x * params["by"]


def _init(key):
    return {"by": jnp.ones(I)}


def _init_top(key):
    return {"by": jnp.ones(O)}


def _top(params, h):
    return h.sum() * params["by"]


MODELS = {
    "embedding": (_of_words, {"vocabulary": (k.SIZE, 5), "size": (k.SIZE, 3)}),
    "tied_readout": (_of_words, {"vocabulary": (k.SIZE, 5), "bias": (k.FLAG, False)}),
    "dense": (
        lambda **given: calls.of_net(jb.network([jb.dense(**given)], jb.readout(given["output_size"], O))),
        {"input_size": (k.SIZE, I), "output_size": (k.SIZE, 3), **ACTIVATION, "bias": (k.FLAG, False)},
    ),
    "encoder": (
        lambda **given: calls.of_net(jb.network([jb.elman(I, H)], jb.readout(H, O), jb.encoder(**given))),
        {"apply": (k.FUNCTION, _encode), "init": (k.FUNCTION, _init)},
    ),
    "head": (
        lambda **given: calls.of_net(jb.network([jb.elman(I, H)], jb.head(**given))),
        {"apply": (k.FUNCTION, _top), "init": (k.FUNCTION, _init_top)},
    ),
}
