import pytest
import torch

from uniaudio.errors import UserError
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.ragged import Ragged


def test_stacks_frames_and_repeats_the_last_one():
    torch.manual_seed(0)
    adapter = StackAdapter(encoder_dim=8, frame_rate=50.0, decoder_dim=16, rate=12.5)
    lengths = [4, 1, 7, 8]
    frames = Ragged.from_rows([torch.randn(n, 8) for n in lengths])
    tokens = adapter(frames)
    assert tokens.lengths.tolist() == [adapter.num_tokens(n) for n in lengths] == [1, 1, 2, 2]
    for row, out in zip(frames.rows(), tokens.rows(), strict=True):
        for i, token in enumerate(out):
            group = [row[min(i * 4 + j, len(row) - 1)] for j in range(4)]
            expected = adapter.down(torch.nn.functional.gelu(adapter.up(adapter.norm(torch.cat(group)))))
            torch.testing.assert_close(token, expected)


def test_a_rate_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"adapter\.rate: 12 does not divide"):
        StackAdapter(8, 50.0, 16, rate=12)
