import itertools

import pytest
import torch

from dcvit.training.order import Order


def test_every_image_once_an_epoch_and_each_epoch_in_its_own_order() -> None:
    draws = list(Order(10, 4, seed=1).draws(0, 5))
    indices, epochs = (torch.cat([getattr(draw, name) for draw in draws]) for name in ("indices", "epochs"))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert indices[:10].sort().values.tolist() == indices[10:].sort().values.tolist() == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()
    other = torch.cat([draw.indices for draw in Order(10, 4, seed=2).draws(0, 5)])
    assert not torch.equal(indices, other)


def test_it_can_start_anywhere() -> None:
    whole = list(Order(10, 4, seed=1).draws(0, 6))
    later = list(Order(10, 4, seed=1).draws(4, 6))
    assert [draw.indices.tolist() for draw in whole[4:]] == [draw.indices.tolist() for draw in later]


@pytest.mark.parametrize(("parts", "processes"), [(1, 2), (2, 1), (2, 2)])
def test_processes_and_parts_share_a_batch_out_in_pairs_of_mirror_images(parts: int, processes: int) -> None:
    whole = [draw.indices for draw in Order(50, 16, seed=1).draws(0, 3)]
    shares = [
        list(Order(50, 16, seed=1, parts=parts, process=process, processes=processes).draws(0, 3))
        for process in range(processes)
    ]
    for step in range(3):
        mine = [draw for share in shares for draw in share if draw.step == step]
        assert {len(draw.indices) for draw in mine} == {16 // (parts * processes)}
        assert sorted(itertools.chain(*(draw.indices.tolist() for draw in mine))) == sorted(whole[step].tolist())
        partner = dict(zip(whole[step].tolist(), whole[step].flip(0).tolist(), strict=True))
        for draw in mine:
            pairs = zip(draw.indices.tolist(), draw.indices.flip(0).tolist(), strict=True)
            assert all(partner[left] == right for left, right in pairs)
