"""Checks of a model that runs: maps, batches, caches, and the tokens that are steered."""

from collections.abc import Sequence

import torch
from torch import Tensor

import melbo
from melbo.models.decoding.decode import Batching, decode
from melbo.models.edits import Add, EditSequence, Where
from research.compatibility.bench import PROMPTS, SCALE, SOURCE, Bench
from research.compatibility.plain import added, logits, pushed, reply, stream
from research.tiny.build import WINDOW

_N = 3  # tokens of a reply
_WHERE: tuple[Where, ...] = ("all", "prompt", "generated")
_PLACES = [(where, skip_first) for where in _WHERE for skip_first in (False, True)]
# prefixes of three tokens are read once, and rows leave after two tokens
_BATCHING = Batching(4, leg=2, least_prefix=2)


def replay(bench: Bench) -> None:
    """A map, which replays a slice, is what the whole model does under a hook, derivative too."""
    lm, v, u = bench.lm, SCALE * bench.directions(1), bench.directions(2)[1:]
    cmap = melbo.CausalMap(lm, bench.prompts, SOURCE, lm.depth, target_tokens=2)
    found, gradient = cmap.value_and_vjp(v, u)
    theta = v[0].clone().requires_grad_()
    truth = _delta(bench, theta)
    bench.same(found[0], truth.detach(), "Δ")
    [along] = torch.autograd.grad(truth @ u[0], theta)
    bench.same(gradient[0], along, "the gradient of Δ")


def _delta(bench: Bench, theta: Tensor) -> Tensor:
    """Mean change of the last two tokens' states leaving the last block, prompt by prompt."""
    changes = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with pushed(bench.lm.blocks[SOURCE], lambda hidden: hidden + theta):
            steered = stream(bench.lm, ids)[-1, 0, -2:]
        changes.append((steered - stream(bench.lm, ids)[-1, 0, -2:]).mean(0))
    return torch.stack(changes).mean(0)


@torch.no_grad()
def causal(bench: Bench) -> None:
    """Another last token leaves the states of earlier ones as they are."""
    one, two = torch.tensor([PROMPTS[0]]), torch.tensor([(*PROMPTS[0][:-1], 77)])
    before, after = stream(bench.lm, one), stream(bench.lm, two)
    bench.same(after[:, :, :-1], before[:, :, :-1], "states of earlier tokens")
    bench.differ(after[:, :, -1], before[:, :, -1], "another last token")


@torch.no_grad()
def equal_rows(bench: Bench) -> None:
    """Equal rows of a batch are each the same as one row by itself."""
    ids = torch.tensor([PROMPTS[0]])
    alone = stream(bench.lm, ids)
    bench.same(stream(bench.lm, ids.expand(3, -1)), alone.expand(-1, 3, -1, -1), "states of rows")


def cached(bench: Bench) -> None:
    """Replies are those of a loop without a cache, with shared prefixes and many rows too."""
    lm = bench.lm
    truth = [reply(lm, prompt, _N) for prompt in PROMPTS]
    found = decode(lm, [*PROMPTS, *PROMPTS], EditSequence(()), _N, _BATCHING, progress=False)
    bench.equal(found, truth * 2, "replies")
    if lm.traits.cache:
        ids, found_logits = _generate(bench, PROMPTS[0])
        # generate gives them in float32
        whole = logits(lm, ids)[:, len(PROMPTS[0]) - 1 : -1].float()
        bench.same(found_logits, whole, "logits of cached tokens")


def _generate(bench: Bench, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids ``[1, T]`` and logits ``[1, new, vocabulary]`` of ``generate``, as a user calls it."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = bench.lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_N,
            min_new_tokens=_N,
            do_sample=False,
            pad_token_id=bench.lm.pad,
            eos_token_id=bench.lm.eos or None,
            use_cache=bench.lm.traits.cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences, torch.stack(out.logits, 1)


def steered_tokens(bench: Bench) -> None:
    """Each ``where``, with and without the first token, as in passes without a cache.

    Raises:
        Wrong: Other tokens are steered, or two places make no difference.
    """
    # the first token is still inside every window
    lm, prompt = bench.lm, PROMPTS[1][:WINDOW]
    v, seen = SCALE * bench.directions(1)[0], list[Tensor]()
    for where, skip_first in _PLACES:
        with melbo.edit(lm, Add(SOURCE, v, where, skip_first)):
            ids, found = _generate(bench, prompt)
        with added(lm, v, len(prompt), where, skip_first):
            whole = logits(lm, ids)[:, len(prompt) - 1 : -1].float()
        bench.same(found, whole, f"logits, where={where}, skip_first={skip_first}")
        seen.append(whole)
    for (where, skip_first), one, two in zip(_PLACES[1:], seen[1:], seen[:-1], strict=True):
        # what is generated never is the first token
        if (where, skip_first) != ("generated", True):
            bench.differ(one, two, f"where={where}, skip_first={skip_first}")


def padded(bench: Bench) -> None:
    """Rows of several lengths, steered each its own way, reply as each does by itself."""
    lm = bench.lm
    v = SCALE * bench.directions(2)[[0, 1, 0]]
    for where, skip_first in (_PLACES[3], _PLACES[4]):
        edit, first = Add(SOURCE, v, where, skip_first), dict[int, Tensor]()
        told = f"where={where}, skip_first={skip_first}"
        batching = Batching(3, pass_rows=0)
        found = decode(lm, PROMPTS, edit, _N, batching, first.__setitem__, progress=False)
        for i, prompt in enumerate(PROMPTS):
            with added(lm, v[i], len(prompt), where, skip_first):
                bench.equal(found[i], reply(lm, prompt, _N), f"reply {i} of a batch, {told}")
                alone = logits(lm, torch.tensor([prompt]))[0, -1].float()
            bench.same(first[i].float(), alone, f"first logits {i} of a batch, {told}")
