from __future__ import annotations

import pytest
import torch

from p2pnet.train.models import ByteTransformer, rotary_table, rotate


def test_a_prediction_depends_on_no_later_byte() -> None:
    torch.manual_seed(1)
    model = ByteTransformer(width=32, layers=2, heads=2, context=16)
    text = torch.randint(256, (2, 16))
    changed = text.clone()
    changed[:, 9:] = 0
    before, after = model(text), model(changed)
    assert before.shape == (2, 16, 256)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_shorter_text_than_the_context_is_scored_the_same() -> None:
    torch.manual_seed(2)
    model = ByteTransformer(width=32, layers=1, heads=2, context=16)
    text = torch.randint(256, (1, 16))
    torch.testing.assert_close(model(text[:, :7]), model(text)[:, :7])


def test_every_parameter_is_a_matrix_and_the_head_is_the_embedding() -> None:
    model = ByteTransformer(width=64, layers=2, heads=4, context=8)
    parameters = dict(model.named_parameters())
    assert {p.dim() for p in parameters.values()} == {2}
    assert sum(p.numel() for p in parameters.values()) == 256 * 64 + 2 * 12 * 64 * 64
    assert "rotary" not in model.state_dict()


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(3)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = (rotate(x.expand(1, 1, 12, 8), rotary_table(12, 8))[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[3, 1], scores[11, 9])
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(12))


@pytest.mark.parametrize("sizes", [(30, 1, 4, 8), (32, 0, 4, 8), (12, 1, 4, 8)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="multiple of twice"):
        ByteTransformer(*sizes)
