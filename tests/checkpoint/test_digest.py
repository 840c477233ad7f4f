import pytest
import torch

from detlib.checkpoint.files import read_checkpoint, write_checkpoint
from detlib.utils.errors import DamagedCheckpointError
from detlib.utils.file_io import PathManager


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pth"
    write_checkpoint(PathManager, str(path), {"model": {"w": torch.ones(3)}, "iteration": 7})
    return path


def test_any_flipped_bit_is_found(file):
    content = file.read_bytes()
    for i in range(0, len(content), 11):  # Weights, headers, padding, the table at the end of the zip, and the digest.
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        file.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(str(file))


@pytest.mark.parametrize("change", [lambda b: b[: len(b) // 2], lambda b: b[:-200] + bytes(200), lambda b: b""])
def test_file_that_is_cut_or_not_filled_is_damaged(file, change):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DamagedCheckpointError, match=r"model\.pth"):
        read_checkpoint(str(file))


def test_file_with_a_digest_is_read_by_torch(file):
    assert torch.load(file)["iteration"] == 7
    assert torch.load(file, mmap=True)["model"]["w"].tolist() == [1, 1, 1]


def test_file_of_other_software_needs_no_digest(file):
    torch.save({"model": {"w": torch.ones(3)}, "iteration": 8}, file)
    assert read_checkpoint(str(file))["iteration"] == 8
