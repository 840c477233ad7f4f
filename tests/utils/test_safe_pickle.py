import io
import os
import pickle
from collections import OrderedDict
from decimal import Decimal

import numpy as np
import pytest

from detlib.utils import safe_pickle
from detlib.utils.errors import CheckpointError, MissingFileError


class RunsCommand:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back_as_they_were(protocol):
    content = OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3).T,
        scalar=np.float64(0.1),
        dtype=np.dtype(">i4"),
        rest=[1, 2.5, None, True, "text", b"\x00\xff", (1, {2, 3}), 1j],
    )
    loaded = safe_pickle.load(io.BytesIO(pickle.dumps(content, protocol)))
    assert isinstance(loaded, OrderedDict)
    np.testing.assert_array_equal(loaded["weight"], content["weight"])
    assert loaded["weight"].dtype == np.float32
    assert loaded["scalar"] == 0.1
    assert loaded["dtype"] == content["dtype"]
    assert loaded["rest"] == content["rest"]


def test_array_written_by_python_2_is_read():
    # pickle.dumps(numpy.array([1.0]), 2) of Python 2, whose bytes are a string.
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x01"
        b"\x85cnumpy\ndtype\nq\x04U\x02f8K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x00\x00\x00\x00\xf0?tb."
    )
    np.testing.assert_array_equal(safe_pickle.load(io.BytesIO(data)), [1.0])


def test_function_is_refused_by_name_and_not_called(tmp_path, capfd):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": RunsCommand()}))
    with pytest.raises(CheckpointError, match=r"model\.pkl .* 'posix\.system'|'nt\.system'"):
        safe_pickle.load(path)
    assert capfd.readouterr().out == ""


def test_scalar_made_of_raw_bytes_cannot_be_an_object():
    address = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'AAAAAAAA'\ntR."
    with pytest.raises(CheckpointError):
        safe_pickle.load(io.BytesIO(address))


def test_further_types_are_admitted_on_request():
    allowed = {**safe_pickle.ARRAYS_AND_CONTAINERS, "decimal.Decimal": float}
    assert safe_pickle.load(io.BytesIO(pickle.dumps(Decimal("0.5"), 2)), allowed=allowed) == 0.5


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": np.zeros(100)})[:50])
    with pytest.raises(CheckpointError, match=r"model\.pkl is damaged"):
        safe_pickle.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"absent\.pkl"):
        safe_pickle.load(tmp_path / "absent.pkl")
