"""Whatever is in a checkpoint or a pickle, it is loaded or refused by an error of detlib's, and runs no code."""

import io
import itertools
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detlib.data.datasets.cifar import CIFAR10, register_cifar
from detlib.data.preparation import load_proposals_into_dataset
from detlib.utils import safe_pickle
from detlib.utils.errors import CheckpointError, DetlibError
from tests.fuzz.hostile import VALUES, damaged, mutated

MARKER = "it_ran"


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def content():
    """What a training saves."""
    own = model()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in own.parameters()).backward()
    optimizer.step()
    return {
        "model": own.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": 3,
        "detlib": {"config": "a: 1"},
    }


def arrays():
    return {name: tensor.numpy() for name, tensor in model().state_dict().items()}


def file_of(suffix, data, folder):
    path = str(folder / f"seed{suffix}")
    if suffix == ".safetensors":
        save_file(data["model"], path)
    elif suffix == ".pkl":
        with open(path, "wb") as file:
            pickle.dump(data, file)
    else:
        torch.save(data, path, _use_new_zipfile_serialization=suffix != ".pt")
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(scope="module")
def seeds(folder):
    """Bytes of whole files by suffix; ".pt" is the older format, and ".own.pth" has a digest behind it."""
    found = {suffix: file_of(suffix, content(), folder) for suffix in (".pth", ".pt", ".safetensors")}
    found[".pkl"] = file_of(".pkl", {"model": arrays(), "__author__": "x"}, folder)
    DetectionCheckpointer(model(), str(folder)).save("own")
    found[".own.pth"] = (folder / "own.pth").read_bytes()
    return found


def load_or_refuse(path):
    own = model()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    try:
        DetectionCheckpointer(own, optimizer=optimizer).load(str(path))
    except DetlibError as error:
        assert str(error)
        return False
    return True


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pkl"])
@given(data=st.data())
def test_damaged_checkpoints_are_loaded_or_refused(folder, seeds, suffix, data):
    path = folder / f"a{suffix}"
    path.write_bytes(data.draw(damaged(seeds[suffix])))
    load_or_refuse(path)


@given(data=st.data())
def test_any_damage_to_an_own_checkpoint_is_found(folder, seeds, data):
    path, changed = folder / "a.pth", data.draw(damaged(seeds[".own.pth"]))
    path.write_bytes(changed)
    assert load_or_refuse(path) == (changed == seeds[".own.pth"])


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".PTH", ""])
@given(data=st.binary(max_size=100))
def test_random_bytes_are_refused(folder, suffix, data):
    (folder / f"a{suffix}").write_bytes(data)
    assert not load_or_refuse(folder / f"a{suffix}")


WRONG = st.one_of(
    VALUES,
    st.sampled_from([torch.zeros(0), torch.tensor(1.0), torch.zeros(4, 3, 3, 3).int(), torch.full((4,), torch.nan)]),
    st.sampled_from(
        [np.zeros(3), np.float64(1), np.array(["a"]), np.zeros(3, dtype="M8[s]"), np.zeros(2, dtype="c16")]
    ),
)


@given(tree=mutated(content(), values=WRONG))
def test_checkpoints_with_other_values_are_loaded_or_refused(folder, tree):
    torch.save(tree, folder / "a.pth")
    load_or_refuse(folder / "a.pth")


@given(tree=st.one_of(mutated({"model": arrays()}, values=WRONG), mutated({"blobs": arrays()}, values=WRONG), VALUES))
def test_pickles_with_other_values_are_loaded_or_refused(folder, tree):
    (folder / "a.pkl").write_bytes(pickle.dumps(tree))
    load_or_refuse(folder / "a.pkl")


PROPOSALS = {
    "ids": [1, 2],
    "boxes": [np.zeros((2, 4), dtype=np.float32), np.zeros((0, 4))],
    "objectness_logits": [np.zeros(2), np.zeros(0)],
    "bbox_mode": 0,
}


@given(tree=mutated(PROPOSALS, values=WRONG))
def test_proposals_with_other_values_are_loaded_or_refused(folder, tree):
    (folder / "proposals.pkl").write_bytes(pickle.dumps(tree))
    samples = [{"image_id": 1}, {"image_id": 2}]
    try:
        load_proposals_into_dataset(samples, str(folder / "proposals.pkl"))
    except DetlibError as error:
        assert str(error)
    else:
        assert all(sample["proposal_boxes"].dtype.kind in "fiu" for sample in samples)


CIFAR = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 1], "label_names": ["a", "b"]}


@given(tree=mutated(CIFAR, values=WRONG))
def test_cifar_with_other_values_is_loaded_or_refused(folder, tree):
    (folder / CIFAR10.folder).mkdir(exist_ok=True)
    for name in ("test_batch", "batches.meta"):
        (folder / CIFAR10.folder / name).write_bytes(pickle.dumps(tree))
    register_cifar("fuzzed_cifar", folder, "test")
    try:
        get_detection_dataset_dicts("fuzzed_cifar")
    except DetlibError as error:
        assert str(error)
    finally:
        DatasetCatalog.remove("fuzzed_cifar")
        MetadataCatalog.remove("fuzzed_cifar")


class Runs:
    """Unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def malicious_pickles(marker):
    """Pickles that would make a file, by one way each."""
    command = f"open({marker!r}, 'w')"
    made = [Runs(os.system, f"touch {marker}"), Runs(eval, command), Runs(exec, command), Runs(open, marker, "w")]
    data = [pickle.dumps({"model": arrays(), "x": one}, protocol) for one in made for protocol in (0, 2, 4)]
    by_name = b"\x80\x02c__builtin__\neval\nX" + len(command).to_bytes(4, "little") + command.encode() + b"\x85R."
    by_instance = b"(S'touch " + marker.encode() + b"'\nios\nsystem\n."
    through_numpy = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\n(K\x00tS'b'\n\x87R."
    getattr_chain = b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x01\x00\x00\x00x\x86R."
    return [*data, by_name, by_instance, through_numpy, getattr_chain]


def as_zip(pickled):
    """A file of torch.save with another pickle in it."""
    file, whole = io.BytesIO(), io.BytesIO()
    torch.save({"model": model().state_dict()}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return file.getvalue()


@pytest.mark.parametrize("number", range(16))
def test_no_pickle_runs_code(tmp_path, number):
    marker = tmp_path / MARKER
    pickled = malicious_pickles(str(marker))[number]
    for name, data in (("a.pkl", pickled), ("a.pth", pickled), ("b.pth", as_zip(pickled)), ("c.safetensors", pickled)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError):
            DetectionCheckpointer(model()).load(str(tmp_path / name))
        with pytest.raises(CheckpointError):
            safe_pickle.load(tmp_path / name)
        with pytest.raises(CheckpointError):
            load_proposals_into_dataset([{"image_id": 1}], str(tmp_path / name))
    assert not marker.exists()


def test_config_in_a_checkpoint_cannot_multiply(folder, caplog):
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = (f"{b}: &{b} {{p: *{a}, q: *{a}, r: *{a}}}\n" for a, b in itertools.pairwise(letters))
    bomb = "a: &a {x: 1}\n" + "".join(lines)
    own = model()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    torch.save({**content(), "detlib": {"config": bomb}}, folder / "a.pth")
    checkpointer = DetectionCheckpointer(own, optimizer=optimizer)
    checkpointer.metadata = {"config": "SEED: 1"}
    assert checkpointer.load(str(folder / "a.pth"))["iteration"] == 3
    assert "SEED was not there and is 1" in caplog.text
