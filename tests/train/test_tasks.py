from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2pnet.config import BytesLmTask, CustomTask
from p2pnet.errors import ConfigError
from p2pnet.train.tasks import make_task

TINY = BytesLmTask("bytes-lm", width=16, layers=1, heads=2, context=8, batch_size=4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return tmp_path


def test_a_fresh_model_knows_nothing_and_says_so_in_nats_per_byte(text: Path) -> None:
    task = make_task(replace(TINY, text=text))
    batch = torch.stack([task.dataset[i] for i in range(4)])
    assert batch.shape == (4, 9)
    assert task.loss(batch).item() == pytest.approx(math.log(256), abs=0.15)
    assert task.held_out_loss() == pytest.approx(math.log(256), abs=0.15)


def test_a_sample_is_a_passage_and_the_population_all_passages(text: Path) -> None:
    task = make_task(replace(TINY, text=text))
    assert len(task.dataset) == len(task.dataset.data) - 8
    assert torch.equal(task.dataset[len(task.dataset) - 1], task.dataset.data[-9:])
    assert bytes(task.dataset[4].tolist()) == b"quick bro"


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_random_numbers_alone(text: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (make_task(replace(TINY, text=text), seed=9).model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_task_of_ones_own_is_built_by_its_author() -> None:
    with pytest.raises(ConfigError, match="'custom' brings a model"):
        make_task(CustomTask("custom"))


def test_sizes_that_make_no_model_are_refused(text: Path) -> None:
    with pytest.raises(ValueError, match="heads: 16 do not cut width = 16 into even parts"):
        replace(TINY, text=text, heads=16)


def test_a_text_shorter_than_the_context_is_refused(text: Path) -> None:
    with pytest.raises(ConfigError, match="shorter than one sample of 4097"):
        make_task(replace(TINY, text=text, context=4096))
