"""The order of the data in a resumed run, beyond row 44 of the faults."""

import itertools

from torch.utils.data import SequentialSampler

from focal_det.engine.data_order import LaterSampler


def test_sampler_skips_the_first_indices():
    sampler = LaterSampler(SequentialSampler(range(9)))
    assert list(itertools.islice(sampler, 3)) == [0, 1, 2]
    sampler.num_skipped = 6
    assert list(sampler) == [6, 7, 8]
