import itertools

import pytest

from detlib.data import ClassBalancedDataset, DatasetCatalog, KFold, RepeatDataset, get_detection_dataset_dicts
from detlib.data.samplers import RepeatFactorTrainingSampler
from detlib.data.wrappers import IndexedDataset


def test_repeated_dataset_starts_over_at_its_end():
    dataset = RepeatDataset(["a", "b", "c"], 2)
    assert len(dataset) == 6
    assert list(dataset) == ["a", "b", "c", "a", "b", "c"]
    with pytest.raises(IndexError, match="6 is out of range for 6 samples"):
        dataset[6]


def test_indexed_samples_know_their_place_and_those_of_the_dataset_do_not():
    samples = [{"id": "a"}, {"id": "b"}]
    dataset = IndexedDataset(samples)
    assert len(dataset) == 2
    assert [dataset[i] for i in (1, 0)] == [{"id": "b", "sample_idx": 1}, {"id": "a", "sample_idx": 0}]
    assert samples == [{"id": "a"}, {"id": "b"}]


def test_samples_of_rare_classes_are_repeated_by_the_factor_rounded_up():
    # Of 97 and 3 samples: f = 0.03, t = 0.1, sqrt(t / f) = 1.83, ceil 2.
    samples = [{"id": i, "label": int(i >= 97)} for i in range(100)]
    dataset = ClassBalancedDataset(samples, 0.1)
    assert [sample["id"] for sample in dataset] == [*range(97), 97, 97, 98, 98, 99, 99]


def test_exact_factors_are_not_rounded_up():
    samples = [{"label": 0}] * 39 + [{"label": 1}]  # sqrt(0.1 / 0.025) = 2
    assert len(ClassBalancedDataset(samples, 0.1)) == 41
    assert len(ClassBalancedDataset(samples, 0.1, sqrt=False)) == 43


def test_balanced_dataset_is_longer_than_a_pass_of_the_sampler_on_average():
    samples = [{"label": int(i >= 97)} for i in range(100)]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.1)
    assert len(ClassBalancedDataset(samples, 0.1)) == 103
    assert factors.sum().item() == pytest.approx(97 + 3 * 1.8257, abs=1e-3)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("num_samples", "num_folds"), [(10, 5), (11, 3), (3, 3)])
def test_folds_are_disjoint_and_cover_everything(num_samples, num_folds, seed):
    samples = list(range(num_samples))
    folds = [list(KFold(samples, i, num_folds, seed=seed, is_test=True)) for i in range(num_folds)]
    assert sorted(itertools.chain(*folds)) == samples
    for i, fold in enumerate(folds):
        assert sorted(fold + list(KFold(samples, i, num_folds, seed=seed))) == samples


def test_folds_are_slices_of_the_samples_or_of_their_shuffled_order():
    samples = list(range(11))
    assert [list(KFold(samples, i, 3, seed=None, is_test=True)) for i in range(3)] == [
        [0, 1, 2],
        [3, 4, 5, 6],
        [7, 8, 9, 10],
    ]
    assert list(KFold(samples, 1, 3)) == list(KFold(samples, 1, 3)) != list(KFold(samples, 1, 3, seed=5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KFold(range(9), 3, 3), r"fold must be in 0, ..., 2 for 3 folds, got 3"),
        (lambda: KFold(range(2), 0, 3), "2 samples cannot be divided into 3 folds"),
        (lambda: RepeatDataset([1], 0), "times must be positive, got 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrapped_datasets_can_be_registered():
    samples = [{"file_name": f"{i}.jpg", "label": i % 2} for i in range(10)]
    DatasetCatalog.register("fold", lambda: KFold(samples, 0))
    try:
        assert len(get_detection_dataset_dicts("fold")) == 8
    finally:
        DatasetCatalog.remove("fold")
