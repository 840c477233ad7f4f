import copy
import pickle

import pytest

from detlib.utils.serialize import PicklableWrapper


def test_wrapper_is_called_and_read_like_its_object():
    wrapper = PicklableWrapper(PicklableWrapper("{}!".format))
    assert wrapper("hi") == "hi!"
    assert wrapper.__name__ == "format"


@pytest.mark.parametrize("duplicate", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_works(duplicate):
    assert duplicate(PicklableWrapper(max))(1, 2) == 2


def test_lambda_goes_through_with_cloudpickle():
    pytest.importorskip("cloudpickle")
    assert pickle.loads(pickle.dumps(PicklableWrapper(lambda x: x + 1)))(1) == 2
