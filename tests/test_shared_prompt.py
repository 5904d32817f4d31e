import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo.edit import Add, edit
from melbo.shared_prompt import can_read_once, read_once

#: Where the blocks or the cache do not let a batch grow on the way; their rows are read one by one.
OWN_ROWS = {"gpt_bigcode", "lfm2", "recurrent_gemma"}


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_rows_that_share_a_prompt_read_what_each_would_alone(name):
    lm = tiny_model(name)
    place = Add(1, 2.0 * directions(5, lm.width), skip_first=True)
    assert can_read_once(lm, place) == (name not in OWN_ROWS)
    if name in OWN_ROWS:
        return
    ids = torch.arange(3, 12)[None]  # longer than the sliding windows
    cache, logits = read_once(lm, ids, place, 5)
    with edit(lm, place):
        own = lm.model(input_ids=ids.expand(5, -1), use_cache=True)
        following = torch.arange(20, 25)[:, None]
        after = lm.model(input_ids=following, past_key_values=own.past_key_values).logits
        ours = lm.model(input_ids=following, past_key_values=cache).logits
    tolerance = 1e-4 if name in FLOAT32_INSIDE else 1e-5
    assert torch.allclose(logits, own.logits[:, -1].float(), atol=tolerance, rtol=1e-4)
    assert torch.allclose(ours, after, atol=tolerance, rtol=1e-4)
