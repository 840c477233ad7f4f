import itertools

import pytest
from torch.utils.data import IterableDataset, Sampler

from detlib.data import samplers
from detlib.data.samplers import SAMPLER_REGISTRY, build_sampler
from detlib.utils.errors import ConfigError, UnknownNameError

SAMPLES = [{"label": 0}] * 3 + [{"label": 1}]


def build(cfg, name, dataset=SAMPLES):
    cfg.DATALOADER.SAMPLER_TRAIN = name
    return build_sampler(cfg, dataset)


@pytest.mark.parametrize(
    "name",
    [
        "TrainingSampler",
        "RandomSubsetTrainingSampler",
        "RepeatFactorTrainingSampler",
        "UniformClassSampler",
        "RepeatAugSampler",
    ],
)
def test_sampler_is_built_by_name_for_the_dataset(tiny_cfg, name):
    tiny_cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    sampler = build(tiny_cfg, name)
    assert type(sampler) is getattr(samplers, name)
    assert set(itertools.islice(sampler, 100)) <= {0, 1, 2, 3}


def test_samplers_look_at_the_samples(tiny_cfg):
    tiny_cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    assert build(tiny_cfg, "RepeatFactorTrainingSampler")._int_part.tolist() == [1, 1, 1, 2]  # sqrt(1 / 0.25)
    assert [part.tolist() for part in build(tiny_cfg, "UniformClassSampler")._samples_of_class] == [[0, 1, 2], [3]]


def test_number_of_repeats_comes_from_the_config(tiny_cfg):
    tiny_cfg.DATALOADER.NUM_REPEATS = 2
    first, second = itertools.islice(build(tiny_cfg, "RepeatAugSampler"), 2)
    assert first == second


def test_uniform_sampler_takes_the_classes_of_objects(tiny_cfg):
    samples = [{"annotations": [{"category_id": 3}, {"category_id": 5}]}, {"annotations": []}]
    assert set(itertools.islice(build(tiny_cfg, "UniformClassSampler", samples), 10)) == {0}


def test_sampler_of_ones_own_gets_config_and_dataset(tiny_cfg, monkeypatch):
    monkeypatch.setattr(SAMPLER_REGISTRY, "_obj_map", dict(SAMPLER_REGISTRY._obj_map))

    @SAMPLER_REGISTRY.register()
    class LastOnly(Sampler):
        def __init__(self, cfg, dataset):
            self.index = len(dataset) - 1

        def __iter__(self):
            yield from itertools.repeat(self.index)

    assert next(iter(build(tiny_cfg, "LastOnly"))) == 3


def test_dataset_with_an_order_of_its_own_has_no_sampler(tiny_cfg):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(SAMPLES)

    assert build_sampler(tiny_cfg, Stream()) is None


def test_unknown_sampler_suggests_a_name(tiny_cfg):
    with pytest.raises(UnknownNameError, match="did you mean 'UniformClassSampler'"):
        build(tiny_cfg, "UniformClasSampler")


def test_part_of_a_subset_is_an_option_of_the_config(tiny_cfg):
    tiny_cfg.merge_from_list(["DATALOADER.RANDOM_SUBSET_RATIO", 0.5])
    assert len(set(itertools.islice(build(tiny_cfg, "RandomSubsetTrainingSampler"), 100))) == 2


def test_subset_needs_a_ratio(tiny_cfg):
    with pytest.raises(ConfigError, match="RANDOM_SUBSET_RATIO"):
        build(tiny_cfg, "RandomSubsetTrainingSampler")
