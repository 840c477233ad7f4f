import random

import numpy as np
import pytest
import torch

from detlib.utils import env
from detlib.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Fall-backs are remembered, as is the set-up; the seed goes into the environment."""
    env._best_device_without.cache_clear()
    env.setup_environment.cache_clear()
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    yield
    env._best_device_without.cache_clear()
    env.setup_environment.cache_clear()


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_same_seed_gives_same_numbers():
    env.seed_all_rng(3)
    first = draw()
    env.seed_all_rng(3)
    assert draw() == first


def test_seeds_may_be_larger_than_numpy_takes():
    env.seed_all_rng(2**40)
    first = draw()
    env.seed_all_rng(2**40)
    assert draw() == first


def test_drawn_seed_is_logged_so_that_a_run_can_be_repeated(caplog):
    with caplog.at_level("INFO"):
        env.seed_all_rng()
    first = draw()
    env.seed_all_rng(int(caplog.messages[0].split()[-1]))
    assert draw() == first


@pytest.mark.parametrize("name", ["cpu", "meta", torch.device("cpu")])
def test_device_that_is_there_is_returned(name):
    assert env.select_device(name) == torch.device(name)


def test_absent_accelerator_is_replaced_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [env.select_device(name).type for name in ("cuda", "cuda:1", "cuda")] == ["cpu"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "using cpu" in caplog.text


def test_mps_comes_before_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert env.select_device("cuda").type == "mps"


def test_index_beyond_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert env.select_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="has 1 of type cuda"):
        env.select_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", None])
def test_unknown_device_names_the_config_key(name):
    with pytest.raises(ConfigError, match=r"MODEL\.DEVICE"):
        env.select_device(name)


def test_torch_version_is_major_and_minor():
    assert ".".join(map(str, env.TORCH_VERSION)) in torch.__version__


def test_setup_runs_the_users_function_once(monkeypatch, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("calls = []\ndef setup_environment():\n    open(__file__ + '.ran', 'a').write('x')\n")
    monkeypatch.setenv("DETLIB_ENV_MODULE", str(path))
    env.setup_environment()
    env.setup_environment()
    assert (tmp_path / "mine.py.ran").read_text() == "x"


def test_setup_without_the_function_is_explained(monkeypatch):
    monkeypatch.setenv("DETLIB_ENV_MODULE", "json")
    with pytest.raises(ConfigError, match="'json', which has no function"):
        env.setup_environment()


def test_fixup_changes_where_public_names_say_they_live():
    class Inner:
        __module__ = "package.inner"

    class Foreign:
        __module__ = "other"

    env.fixup_module_metadata("package", {"Inner": Inner, "Foreign": Foreign, "number": 3})
    assert (Inner.__module__, Foreign.__module__) == ("package", "other")


def test_random_states_survive_a_file_and_repeat_the_numbers(tmp_path):
    np.random.normal()  # Leaves the second of a pair of normal numbers behind, which belongs to the state.
    torch.save(env.get_random_states(), tmp_path / "states.pth")
    drawn = draw(), np.random.normal()
    env.set_random_states(torch.load(tmp_path / "states.pth", weights_only=True))
    assert (draw(), np.random.normal()) == drawn


def test_preserved_random_states_hide_what_a_block_draws():
    states = env.get_random_states()
    expected = draw()
    env.set_random_states(states)
    with env.preserved_random_states():
        draw()
    assert draw() == expected
