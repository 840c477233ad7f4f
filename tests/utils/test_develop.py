import pytest

from detlib.utils.develop import create_dummy_class, create_dummy_func


def test_dummy_class_says_what_is_missing():
    dummy = create_dummy_class("Fast", "fastlib", "Install fastlib.")
    assert dummy.__name__ == "Fast"
    for use in (dummy, lambda: dummy.method):
        with pytest.raises(ImportError, match=r"^Fast needs fastlib, which cannot be imported\. Install fastlib\.$"):
            use()


def test_dummy_function_says_what_is_missing():
    with pytest.raises(ImportError, match=r"^fast needs a, b, which cannot be imported\.$"):
        create_dummy_func("fast", ("a", "b"))(1)
