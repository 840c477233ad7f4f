import itertools

import pytest

from detlib.data.benchmark import DataLoaderBenchmark, iter_benchmark


def test_iterator_is_timed_after_the_warmup():
    numbers = itertools.count()
    mean, seconds = iter_benchmark(numbers, num_iter=4, warmup=3)
    assert len(seconds) == 4
    assert mean == pytest.approx(sum(seconds) / 4)
    assert next(numbers) == 7


def test_iterator_is_timed_no_longer_than_asked_for():
    _, seconds = iter_benchmark(itertools.count(), num_iter=10**9, warmup=0, max_time_seconds=0)
    assert len(seconds) == 1


def test_every_part_of_loading_is_timed():
    samples = [{"id": i} for i in range(8)]
    benchmark = DataLoaderBenchmark(samples, mapper=lambda s: s, total_batch_size=2, num_workers=1, max_time_seconds=1)
    assert benchmark.benchmark_dataset(3) > 0
    assert benchmark.benchmark_mapper(3) > 0
    assert len(benchmark.benchmark_workers(3)) == 1
    assert benchmark.benchmark_IPC(3) > 0
    assert benchmark.benchmark_distributed(3) > 0
