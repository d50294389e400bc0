"""What is kept between the passes must be decided when they are traced, so the platform is a guess by then.

A choice inside one pass needs no guess: `jax.lax.platform_dependent` makes it when the program is lowered.
But the forward and the backward pass must agree on what the first keeps for the second.
"""

from __future__ import annotations

import jax


def probably_on_a_gpu() -> bool:
    """The program that is traced now will run on a GPU, unless someone lowers it for another platform.

    A wrong guess changes time and memory of the program, never its numbers.
    """
    return jax.default_backend() == "gpu"
