import copy

import numpy as np

from detlib.data.fingerprint import fingerprint_of

BOX = {"bbox": [1.0, 2.0, 3.0, 4.0], "category_id": 0}


def samples(folder="/data/images"):
    return [
        {
            "file_name": f"{folder}/{name}",
            "height": 4,
            "width": 6,
            "annotations": [dict(BOX), {**BOX, "category_id": 1}],
        }
        for name in ("a/1.jpg", "b/2.jpg")
    ]


def changed(change):
    dataset = copy.deepcopy(samples())
    change(dataset)
    return dataset


def test_folder_of_the_images_does_not_count():
    assert fingerprint_of(samples("/data/images")) == fingerprint_of(samples("/mnt/other/place"))
    assert fingerprint_of(samples()[:1]) == fingerprint_of(samples("elsewhere")[:1])


def test_names_sizes_classes_and_boxes_count():
    variants = [
        samples(),
        changed(lambda dataset: dataset.reverse()),
        changed(lambda dataset: dataset.pop()),
        changed(lambda dataset: dataset[1].update(file_name="/data/images/b/3.jpg")),
        changed(lambda dataset: dataset[1].update(height=5)),
        changed(lambda dataset: dataset[1]["annotations"].pop()),
        changed(lambda dataset: dataset[1]["annotations"][0].update(category_id=1)),
        changed(lambda dataset: dataset[1]["annotations"][0].update(bbox=[1.0, 2.0, 3.0, 5.0])),
    ]
    assert len({fingerprint_of(dataset) for dataset in variants}) == len(variants)


def test_images_in_memory_count():
    first = [{"image": np.zeros((2, 2), np.uint8), "label": 0}]
    second = [{"image": np.ones((2, 2), np.uint8), "label": 0}]
    assert fingerprint_of(first) == fingerprint_of(copy.deepcopy(first)) != fingerprint_of(second)
