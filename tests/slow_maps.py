"""Slow ways to what maps of a language model compute, and the prompts to compare on."""

import torch
from cases import WINDOW
from toys import directions

from melbo import CausalMap, Prompts

RAGGED = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19, 20, 21, 22, 23, 24))

#: torch cannot push tangents through their own autograd functions.
NO_FORWARD_MODE = {"bloom", "recurrent_gemma"}


def prompts_of(rows=RAGGED):
    """Prompts of these token ids."""
    return Prompts(tuple(f"prompt {i}" for i in range(len(rows))), tuple(rows))


#: As long as each other, and longer than any window.
EQUAL = prompts_of(((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15, 16, 17, 18)))
assert WINDOW < 7


class WholeBlocks(CausalMap):
    """A map that replays whole blocks, however few tokens are read."""

    def _tail(self, part):
        return None


def slow_twin(*args, tail=False, shared=False, **settings):
    """A map that replays whole blocks, and in which each row has a forward pass of its own.

    ``tail`` and ``shared`` leave the one or the other out.
    """
    twin = (CausalMap if tail else WholeBlocks)(*args, **settings)
    twin._shares_zero = shared
    return twin


def oracles(cmap, name, k=2):
    """Result of every oracle that the architecture has, for ``k`` random directions."""
    V, W, U = (
        directions(k, cmap.d_source, 1),
        directions(k, cmap.d_source, 2),
        directions(k, cmap.d_target, 3),
    )
    value, gradient = cmap.value_and_vjp(V, U)
    out = {
        "value": cmap.value(V),
        "value with vjp": value,
        "vjp": gradient,
        "vjp at zero": cmap.vjp(U),
    }
    if name not in NO_FORWARD_MODE:
        out |= {"jvp": cmap.jvp(V), "hvp": cmap.hvp(U, V), "bilinear": cmap.bilinear(V, W)}
    return out


def assert_same(got, want, tolerance):
    assert got.keys() == want.keys()
    for oracle in want:
        assert want[oracle].norm() > 0, oracle
        assert (got[oracle] - want[oracle]).norm() <= tolerance * want[oracle].norm(), oracle


@torch.no_grad()
def by_hooks(
    lm,
    prompts,
    source,
    target,
    theta,
    positions="all",
    skip_first=False,
    target_tokens=3,
    inside="",
):
    """Changes of the model's own target states, ``[k, prompts, target_tokens, d]``.

    Hooks steer one prompt and one direction at a time. States are those that leave the last block,
    or the module ``inside`` it.
    """

    def leaving(tokens, v):
        steered = torch.zeros(1, len(tokens), 1, dtype=lm.dtype)
        steered[:, -target_tokens if positions == "target" else 0 :] = 1
        steered[:, : 1 if skip_first else 0] = 0

        def push(block, args, kwargs):
            if args:
                return (args[0] + v * steered, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": kwargs["hidden_states"] + v * steered}

        out = []
        handles = [
            lm.blocks[source].register_forward_pre_hook(push, with_kwargs=True),
            lm.blocks[target - 1]
            .get_submodule(inside)
            .register_forward_hook(
                lambda _, args, o: out.append(o[0] if isinstance(o, tuple) else o)
            ),
        ]
        try:
            lm.model(torch.tensor([tokens]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return out[0][0, -target_tokens:]

    return torch.stack(
        [
            torch.stack([leaving(tokens, v) - leaving(tokens, 0 * v) for tokens in prompts.tokens])
            for v in theta
        ]
    )
