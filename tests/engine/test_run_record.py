import numpy as np
import torch

from detlib.engine.run_record import RunRecorder, digest, read_records
from detlib.structures import Boxes, Instances
from tests.engine.toy import toy_trainer


def record(folder, *values, start=0):
    trainer = toy_trainer(*values)
    trainer.register_hooks([RunRecorder(folder)])
    trainer.train(start, start + len(values))


def test_each_iteration_has_a_line_of_what_it_saw_and_made(tmp_path):
    record(tmp_path, 2, 3)
    (lines,) = read_records(tmp_path)
    assert [lines[i]["losses"]["loss"] for i in (0, 1)] == [2.0, 3 * np.float32(0.8)]
    assert len({lines[i]["batch"] for i in (0, 1)}) == len({lines[i]["weights"] for i in (0, 1)}) == 2


def test_line_of_an_iteration_that_is_made_again_replaces_the_first(tmp_path):
    record(tmp_path, 2, 3, 4)
    record(tmp_path, 5, 6, start=1)
    (lines,) = read_records(tmp_path)
    assert [lines[i]["losses"]["loss"] for i in range(3)] == [2.0, 5.0, 6 * np.float32(0.5)]


def sample(x=1.0):
    instances = Instances((4, 4), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, x, 1.0]])))
    return [{"image": torch.zeros(3, 4, 4), "instances": instances, "drawn": np.ones(2)}]


def test_digest_tells_the_last_bit_of_a_box():
    assert digest(sample()) == digest(sample())
    assert digest(sample()) != digest(sample(float(np.nextafter(np.float32(1), np.float32(2)))))


def test_digest_tells_types_shapes_and_signs_of_zero():
    values = [torch.zeros(2), torch.zeros(2, 1), -torch.zeros(2), torch.zeros(2).int(), np.zeros(2), [0.0, 0.0], "00"]
    assert len({digest(value) for value in values}) == len(values)
