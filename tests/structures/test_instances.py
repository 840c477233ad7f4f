import copy
import pickle

import numpy as np
import pytest
import torch

from detlib.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detlib.utils.errors import UnknownNameError


def three_objects():
    triangle = np.array([0.0, 0.0, 4.0, 0.0, 0.0, 4.0])
    return Instances(
        (20, 30),
        boxes=Boxes(torch.arange(12.0).view(3, 4)),
        scores=torch.tensor([0.1, 0.2, 0.3]),
        names=["a", "b", "c"],
        array=np.array([1, 2, 3]),
        bitmaps=BitMasks(torch.zeros(3, 20, 30)),
        polygons=PolygonMasks([[triangle], [triangle + 1], [triangle + 2]]),
        keypoints=Keypoints(torch.zeros(3, 2, 3)),
    )


def test_fields_are_attributes():
    instances = Instances((20, 30))
    instances.scores = torch.zeros(2)
    instances.set("classes", torch.ones(2))
    assert instances.classes is instances.get("classes")
    assert instances.has("scores")
    assert not instances.has("boxes")
    assert list(instances.get_fields()) == ["scores", "classes"]
    assert len(instances) == 2
    assert instances.image_size == (20, 30)


def test_field_of_other_length_is_refused_with_both_names():
    instances = Instances((20, 30), scores=torch.zeros(2))
    with pytest.raises(ValueError, match="'classes' has length 3, but 'scores' has length 2"):
        instances.classes = torch.zeros(3)


def test_only_field_may_change_its_length():
    instances = Instances((20, 30), scores=torch.zeros(2))
    instances.scores = torch.zeros(3)
    assert len(instances) == 3


def test_unknown_field_lists_the_existing_ones():
    instances = Instances((20, 30), scores=torch.zeros(2), boxes=Boxes(torch.zeros(2, 4)))
    with pytest.raises(AttributeError, match="no field 'score'; the fields are: scores, boxes"):
        instances.score  # noqa: B018
    with pytest.raises(UnknownNameError, match="scores, boxes"):
        instances.get("score")
    with pytest.raises(KeyError):
        instances.remove("score")
    assert not hasattr(instances, "score")


def test_removed_field_is_gone():
    instances = three_objects()
    instances.remove("scores")
    assert not instances.has("scores")


@pytest.mark.parametrize("name", ["image_size", "to"])
def test_names_of_the_class_are_no_fields(name):
    with pytest.raises(AttributeError, match=name):
        setattr(Instances((20, 30)), name, torch.zeros(2))


def names_and_scores(instances):
    assert all(len(value) == len(instances.names) for value in instances.get_fields().values())
    assert all(type(value) is type(three_objects().get(name)) for name, value in instances.get_fields().items())
    return instances.names, [round(score, 1) for score in instances.scores.tolist()]


@pytest.mark.parametrize(
    ("item", "names"),
    [
        (1, ["b"]),
        (-1, ["c"]),
        (np.int64(2), ["c"]),
        (slice(1, None), ["b", "c"]),
        (torch.tensor([2, 0]), ["c", "a"]),
        (torch.tensor(2), ["c"]),
        (torch.tensor([True, False, True]), ["a", "c"]),
        ([2, 1], ["c", "b"]),
        ([True, False, False], ["a"]),
        (np.array([False, True, False]), ["b"]),
        ([], []),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_every_kind_of_index_chooses_the_same_objects_in_all_fields(item, names):
    scores = [{"a": 0.1, "b": 0.2, "c": 0.3}[name] for name in names]
    assert names_and_scores(three_objects()[item]) == (names, scores)


@pytest.mark.parametrize("item", [3, -4, torch.zeros(2, dtype=torch.bool)])
def test_index_outside_is_an_error(item):
    with pytest.raises(IndexError, match="3"):
        three_objects()[item]


def test_iteration_gives_objects_one_by_one():
    assert [one.names for one in three_objects()] == [["a"], ["b"], ["c"]]
    assert list(three_objects()[[]]) == []


def test_no_fields_mean_no_objects():
    assert len(Instances((20, 30))) == 0
    assert len(Instances((20, 30))[:2]) == 0


def test_cat_joins_every_kind_of_field():
    joined = Instances.cat([three_objects(), three_objects()[[]], three_objects()[:1]])
    assert names_and_scores(joined) == (["a", "b", "c", "a"], [0.1, 0.2, 0.3, 0.1])


def test_cat_of_one_returns_it():
    instances = three_objects()
    assert Instances.cat([instances]) is instances


def test_cat_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])
    with pytest.raises(ValueError, match=r"\(20, 30\) and \(20, 31\)"):
        Instances.cat([Instances((20, 30)), Instances((20, 31))])
    with pytest.raises(ValueError, match=r"fields scores and \(none\)"):
        Instances.cat([Instances((20, 30), scores=torch.zeros(1)), Instances((20, 30))])
    with pytest.raises(ValueError, match=r"'field'.*range"):
        Instances.cat([Instances((20, 30), field=range(2))] * 2)


def test_to_moves_what_can_move_and_leaves_the_source():
    instances = Instances((20, 30), boxes=Boxes(torch.zeros(1, 4)), names=["a"])
    moved = instances.to("meta")
    assert moved.boxes.device.type == "meta"
    assert moved.names == ["a"]
    assert instances.boxes.device.type == "cpu"


def test_copy_and_pickle_keep_fields():
    for clone in (copy.deepcopy(three_objects()), pickle.loads(pickle.dumps(three_objects()))):
        assert names_and_scores(clone) == (["a", "b", "c"], [0.1, 0.2, 0.3])
        assert clone.image_size == (20, 30)


def test_repr_shows_number_size_and_fields():
    text = repr(Instances((20, 30), names=["a"]))
    assert text == "Instances(num_instances=1, image_size=(20, 30), fields=[names=['a']])"
