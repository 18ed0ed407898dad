"""Which k of each chunk's values are sent, and the levels they are sent at. Contract: protocols/codec-1.md.

The same two rules choose what an encoder sends and what a reducer answers. Look-ups are index_select and not indexing,
which is the same and several times slower on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

LLOYD_PASSES = 4


def largest_indices(magnitudes: Tensor, k: int) -> Tensor:
    """Return where each row has its k largest values, rising; among equal ones the lower index counts as larger.

    magnitudes: (rows, n) int32 or int64, none negative, contiguous; n a power of two, k <= n.
    returns: (rows, k) int64.

    Rows with fewer than k non-zeros so get the lowest indices that are free. torch.topk is only asked for values, which
    do not depend on how it breaks ties. It is slow, so it never sees the whole row: the k-th largest of the maxima of
    more than k groups is a lower bound of the k-th largest value, and only what reaches it is looked at again.
    """
    rows, n = magnitudes.shape
    groups = max(64, 1 << (4 * k - 1).bit_length())
    if groups > n // 4:  # measured: for k over 256 the detour costs more than it saves
        groups = n
    maxima = magnitudes.view(rows, n // groups, groups).amax(1) if groups < n else magnitudes
    bound = maxima.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    # Where the bound is 0 every zero would reach it; the first k places hold enough of the lowest free indices.
    reaches = magnitudes >= bound.clamp(min=1)
    reaches[:, :k] |= bound == 0
    places = _nonzero_places(reaches, few=8 * k < n)
    if places.numel() == rows * k:
        return (places & (n - 1)).view(rows, k)
    return _thin_out(magnitudes, places, k)


def largest_among(sums: Tensor, candidates: Tensor, k: int) -> Tensor:
    """Return `largest_indices` of |sums|, where nothing but the candidates can be other than zero.

    sums: (rows, 4096) int64, |sums| < 2^51.   candidates: (rows, n) int64 indices, any number of times each.
    returns: (rows, k) int64. Where they are few among 4096 this is several times faster than a look at every sum.
    """
    rows, n = candidates.shape
    if n > k:
        order = torch.arange(n, dtype=torch.int32, device=sums.device).expand(rows, n)
        owner = torch.empty(sums.shape, dtype=torch.int32, device=sums.device).scatter_(1, candidates, order)
        is_first = owner.gather(1, candidates) == order  # one of those that name the same index, whichever
        last = sums.shape[1] - 1
        keys = sums.gather(1, candidates).abs_().mul_(last + 1).add_(last).sub_(candidates)
        top = torch.where(is_first, keys, 0).topk(k, dim=1, sorted=False).values  # no two keys are equal
        is_some = top > last  # else a row has fewer than k that are not zero
        if bool(is_some.all()):
            return (last - (top & last)).sort(1).values
        chosen = torch.zeros((rows, last + 2), dtype=torch.bool, device=sums.device)
        chosen.scatter_(1, torch.where(is_some, last - (top & last), last + 1), True)
        return fill_up(chosen[:, :-1], k)
    return largest_indices(sums.abs(), k)


def fill_up(chosen: Tensor, k: int) -> Tensor:
    """Return the places of True in each row, and the lowest others, k in all, rising.

    chosen: (rows, n) bool, at most k True in a row.   returns: (rows, k) int64.
    """
    lack = k - chosen.sum(1, keepdim=True)
    head = ~chosen[:, :k]  # among so many are the lowest k that are free or chosen
    whole = chosen.clone()
    whole[:, :k] |= head & (head.cumsum(1, dtype=torch.int32) <= lack)
    return (whole.view(-1).nonzero().view(-1) % chosen.shape[1]).view(-1, k)


def levels_of(magnitudes: Tensor, count: int) -> Tensor:
    """Return the levels of each row: the mean of what is not zero, rounded down, or those of `lloyd_levels`.

    magnitudes: (rows, k) int64, none negative, sums under 2^63.   count: 1, 2 or 4.
    returns: (rows, count) int64, never falling.
    """
    return lloyd_levels(magnitudes, count) if count > 1 else _mean_of_some(magnitudes).unsqueeze(1)


def lloyd_levels(magnitudes: Tensor, count: int) -> Tensor:
    """Return the levels of each row by Lloyd's algorithm, 4 passes, means rounded down. As `levels_of`; count: 2 or 4.

    Two levels start from (minimum, maximum); four from these two and from what lies halfway between them and the least
    and the largest value. A value belongs to the next level where it is strictly nearer to it; a level without values
    stays. In a row that holds a zero the lowest level stays zero, since nothing may move what nobody sent, and the
    other one starts from the mean of what is not zero: from the maximum it would stay there, with all that is under
    half of it at zero.
    """
    least, most = torch.aminmax(magnitudes, dim=1)
    some_zero = least == 0
    high = torch.where(some_zero, _mean_of_some(magnitudes), most)
    levels = _lloyd_passes(magnitudes, torch.stack([least, high], dim=1), some_zero)
    if count == 2:
        return levels
    low, high = levels.unbind(1)
    first, second = torch.where(some_zero, 0, (least + low) // 2), torch.where(some_zero, high // 2, low)
    return _lloyd_passes(magnitudes, torch.stack([first, second, high, (high + most) // 2], dim=1), some_zero)


def _lloyd_passes(magnitudes: Tensor, levels: Tensor, some_zero: Tensor) -> Tensor:
    k = magnitudes.shape[1]
    doubled, total = magnitudes * 2, magnitudes.sum(1)
    for _ in range(LLOYD_PASSES):
        edges = levels[:, 1:] + levels[:, :-1]
        counts, totals = [torch.full_like(total, k)], [total]  # of what is over each edge, and over none
        for number in range(edges.shape[1]):
            is_over = doubled > edges[:, number, None]
            counts.append(is_over.sum(1))
            totals.append((magnitudes * is_over).sum(1))
        count, sums = (torch.stack([*each, torch.zeros_like(total)], dim=1) for each in (counts, totals))
        count, sums = count[:, :-1] - count[:, 1:], sums[:, :-1] - sums[:, 1:]
        levels = torch.where(count > 0, sums // count.clamp(min=1), levels)
        levels[:, 0] = torch.where(some_zero, 0, levels[:, 0])
    return levels


def _mean_of_some(magnitudes: Tensor) -> Tensor:
    return magnitudes.sum(1) // (magnitudes > 0).sum(1).clamp(min=1)


def _nonzero_places(mask: Tensor, few: bool) -> Tensor:
    """Return the flat places of True, rising. mask: (rows, n) bool, n divisible by 8.   returns: (count,) int64."""
    if not few:
        return mask.view(-1).nonzero().view(-1)
    words = mask.view(torch.int64).view(-1)  # one look for eight places, of which nearly all are False
    hits = words.nonzero().view(-1)
    places = words.index_select(0, hits).view(torch.bool).nonzero().view(-1)
    return (hits.index_select(0, places >> 3) << 3) | (places & 7)


def _thin_out(magnitudes: Tensor, places: Tensor, k: int) -> Tensor:
    """Return `largest_indices`, given k candidates or more for each row. places: (count,) int64, flat, rising."""
    rows, n = magnitudes.shape
    row = places >> (n.bit_length() - 1)
    counts = torch.bincount(row, minlength=rows)
    width = int(counts.max())
    starts = counts.cumsum(0) - counts
    slot = row * width + torch.arange(places.numel(), device=places.device) - starts.index_select(0, row)
    values = magnitudes.new_full((rows, width), -1)
    values.view(-1).scatter_(0, slot, magnitudes.view(-1).index_select(0, places))
    indices = torch.zeros((rows, width), dtype=torch.int64, device=places.device)
    indices.view(-1).scatter_(0, slot, places & (n - 1))
    last = values.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = values > last, values == last
    room = k - above.sum(1, keepdim=True)
    return indices.masked_select(above | (equal & (equal.cumsum(1) <= room))).view(rows, k)
