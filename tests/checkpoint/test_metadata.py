import logging

import pytest
import torch
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.metadata import differences_of_trainings, differences_of_weights
from detlib.config import get_cfg


def datasets(**fingerprints):
    return {"datasets": {name: {"num_samples": 10, "fingerprint": value} for name, value in fingerprints.items()}}


def checkpointer(folder, **metadata):
    made = DetectionCheckpointer(
        model := nn.Linear(1, 1), str(folder), optimizer=torch.optim.SGD(model.parameters(), 1)
    )
    made.metadata = metadata
    return made


def test_options_that_matter_are_compared_key_by_key():
    before, now = get_cfg(), get_cfg()
    now.SOLVER.MAX_ITER, now.INPUT.FORMAT = 80, "RGB"
    now.OUTPUT_DIR, now.DATALOADER.NUM_WORKERS, now.INPUT.MIN_SIZE_TEST = "elsewhere", 9, 64
    assert differences_of_trainings({"config": before.dump()}, {"config": now.dump()}) == [
        "INPUT.FORMAT was 'BGR' and is 'RGB'",
        "SOLVER.MAX_ITER was 40000 and is 80",
    ]


def test_option_that_one_config_lacks_is_named():
    assert differences_of_trainings({"config": "SEED: 1\n"}, {"config": "SEED: 1\nMODEL: {NEW: 2}\n"}) == [
        "MODEL.NEW was not there and is 2"
    ]


def test_changed_data_is_named():
    assert differences_of_trainings(datasets(a="x", b="y"), datasets(a="x", b="z")) == [
        "the dataset 'b' has other samples or annotations"
    ]
    fewer = {"datasets": {"a": {"num_samples": 9, "fingerprint": "w"}}}
    assert differences_of_trainings(datasets(a="x"), fewer) == ["the dataset 'a' has 9 samples instead of 10"]


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (["cat", "dog"], None),
        (["dog", "cat"], "thing_classes had another order: cat, dog; now: dog, cat"),
        (["cat", "cow"], "thing_classes have other names, the first of them 'cow', which was 'dog'"),
        (["cat"], "thing_classes were 2 (cat, dog) and are 1 (cat)"),
    ],
)
def test_other_classes_are_a_difference_of_weights(classes, difference):
    stored, own = ({"classes": {"thing_classes": names}} for names in (["cat", "dog"], classes))
    assert differences_of_weights(stored, own) == ([difference] if difference else [])


def test_other_pixel_statistics_are_a_difference_of_weights():
    stored, own = ({"preprocessing": {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_STD": [std]}} for std in (1.0, 57.0))
    assert differences_of_weights(stored, own) == ["MODEL.PIXEL_STD was [1.0] and is [57.0]"]


def test_file_says_what_wrote_it_and_a_resumed_training_what_is_other(tmp_path, caplog):
    checkpointer(tmp_path, config="SEED: 1\n").save("model_0000009")
    rest = checkpointer(tmp_path, config="SEED: 2\n").resume_or_load("")
    assert rest["detlib"]["config"] == "SEED: 1\n"
    assert rest["detlib"]["torch"] == torch.__version__
    assert "SEED was 1 and is 2" in caplog.text


def test_weights_alone_say_nothing_of_the_schedule(tmp_path, caplog):
    checkpointer(tmp_path, config="SEED: 1\n").save("model_0000009")
    checkpointer(tmp_path, config="SEED: 2\n").resume_or_load(str(tmp_path / "model_0000009.pth"), resume=False)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("stored", ["text", {"config": ": [", "classes": {"thing_classes": 3}}, {"datasets": [1]}])
def test_metadata_that_makes_no_sense_is_no_error(tmp_path, stored):
    other = checkpointer(tmp_path, config="SEED: 2\n", classes={"thing_classes": ["a"]}, **datasets(a="x"))
    model = nn.Linear(1, 1)
    torch.save({"model": model.state_dict(), "detlib": stored}, tmp_path / "m.pth")
    other.load(str(tmp_path / "m.pth"))
    assert torch.equal(other.model.weight, model.weight)
