"""The data of a run: the same batches with any number of workers, and after any resume."""

import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from focal_det.engine.training_stream import NamingMapper, TrainingStream

NUM_IMAGES = 7
RECORDS = [{"file_name": f"{i}", "width": 9 + i % 3, "height": 10} for i in range(NUM_IMAGES)]


def draw(record):
    """An image with a random number from each generator that augmentations use."""
    numbers = [random.random(), np.random.rand(), torch.rand(()).item()]
    return {**record, "numbers": numbers}


def make_stream(
    num_workers=0, mapper=draw, seed=1, by_orientation=True, batch_size=2, records=None
):
    return TrainingStream(
        records or RECORDS,
        TrainingSampler(NUM_IMAGES, seed=3),
        mapper,
        batch_size=batch_size,
        by_orientation=by_orientation,
        num_workers=num_workers,
        seed=seed,
    )


def read(stream, num_batches):
    return [next(stream) for _ in range(num_batches)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_do_not_depend_on_the_workers(num_workers):
    assert read(make_stream(num_workers), 9) == read(make_stream(), 9)


def test_images_of_a_batch_have_one_orientation():
    for batch in read(make_stream(), 20):
        assert len({x["width"] > x["height"] for x in batch}) == 1


def test_batches_without_grouping_are_in_the_order_of_the_sampler():
    indices = iter(TrainingSampler(NUM_IMAGES, seed=3))
    for batch in read(make_stream(by_orientation=False, batch_size=3), 10):
        assert [x["file_name"] for x in batch] == [str(next(indices)) for _ in range(3)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_read", [0, 1, 4, 11])
def test_stream_continues_at_its_state(num_workers, num_read):
    stream = make_stream()
    read(stream, num_read)
    other = make_stream(num_workers)
    other.load_state_dict(stream.state_dict())
    assert other.state_dict() == stream.state_dict()
    assert read(other, 8) == read(stream, 8)


def test_images_that_wait_are_in_the_state():
    stream = make_stream()
    states = [stream.state_dict()] + [[next(stream), stream.state_dict()][1] for _ in range(10)]
    assert any(x["waiting"] for x in states)
    for i, state in enumerate(states):
        assert state["next"] == 2 * i + len(state["waiting"])


def test_another_seed_or_position_draws_other_numbers():
    numbers = [y for x in read(make_stream(), 9) for image in x for y in image["numbers"]]
    others = [y for x in read(make_stream(seed=2), 9) for image in x for y in image["numbers"]]
    assert len({*numbers, *others}) == len(numbers) + len(others)


def test_generators_of_the_run_go_on_as_if_nothing_were_drawn():
    def draw_three():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw_three()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    read(make_stream(), 3)
    read(make_stream(2), 3)
    assert draw_three() == expected


def test_mapper_that_returns_none_gets_another_image():
    def skip(record):
        return draw(record) if record["file_name"] in "12" else None

    batches = read(make_stream(mapper=skip), 6)
    assert {x["file_name"] for batch in batches for x in batch} == {"1", "2"}
    assert batches == read(make_stream(2, mapper=skip), 6)
    with pytest.raises(ValueError, match="returned None for 100 images in turn"):
        next(make_stream(mapper=lambda record: None))


def test_sampler_continues_with_its_seed():
    """Versions of Detectron2 derive different ones from the same cfg.SEED."""
    stream = make_stream()
    read(stream, 2)
    other = make_stream()
    other._sampler._seed = 4
    other.load_state_dict(stream.state_dict())
    assert read(other, 8) == read(stream, 8)


def test_data_set_may_make_its_dicts_when_asked():
    """Such as one that is registered as a torch Dataset."""

    class Records(Dataset):
        def __len__(self):
            return NUM_IMAGES

        def __getitem__(self, index):
            return {"file_name": str(index), "width": 9 + index % 3, "height": 10}

    assert read(make_stream(records=Records()), 5) == read(make_stream(), 5)


def test_stream_that_has_begun_cannot_move():
    stream = make_stream()
    next(stream)
    with pytest.raises(RuntimeError, match="has begun"):
        stream.load_state_dict({"next": 0, "waiting": []})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_an_image_names_it_and_leaves_the_state(num_workers):
    def fail(record):
        if record["file_name"] == "4":
            raise OSError("out of luck")
        return draw(record)

    errors = []
    stream = make_stream(num_workers, NamingMapper(fail))
    stream.before_batch = errors.append
    states = []
    with pytest.raises(ValueError, match="Image 4: OSError: out of luck"):
        for _ in range(99):
            states.append(stream.state_dict())
            next(stream)
    assert stream.state_dict() == states[-1]
    assert errors[:-1] == [None] * (len(errors) - 1) and isinstance(errors[-1], ValueError)


def test_stop_before_a_batch_leaves_the_state():
    """A resumed run then reads that batch again."""

    class Stop(BaseException):
        pass

    def stop(error):
        raise Stop

    stream = make_stream()
    read(stream, 3)
    state = stream.state_dict()
    stream.before_batch = stop
    with pytest.raises(Stop):
        next(stream)
    assert stream.state_dict() == state
    resumed = make_stream()
    resumed.load_state_dict(state)
    assert read(resumed, 4) == read(make_stream(), 7)[3:]
