import subprocess
import sys

import pytest
import torch

from detlib.utils.memory import host_memory, retry_if_cuda_oom


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the memory of this process alone is known")
def test_memory_in_use_is_also_that_of_the_processes_started_from_here():
    before = host_memory()
    code = "memory = bytearray(64 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert host_memory() - before > 60 << 20
        process.communicate(b"\n")


def failing(times):
    """A function that runs out of memory a number of times, then returns its arguments."""
    calls = []

    def func(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return args, kwargs

    return func, calls


@pytest.mark.parametrize(("times", "num_calls"), [(0, 1), (1, 2), (2, 3)])
def test_function_is_called_until_it_works(times, num_calls):
    func, calls = failing(times)
    x = torch.ones(2)
    assert retry_if_cuda_oom(func)(x, "a", key=3) == ((x, "a"), {"key": 3})
    assert len(calls) == num_calls


def test_third_failure_is_raised():
    with pytest.raises(torch.OutOfMemoryError):
        retry_if_cuda_oom(failing(3)[0])()


def test_other_errors_pass_at_once():
    def func():
        raise RuntimeError("other")

    with pytest.raises(RuntimeError, match="other"):
        retry_if_cuda_oom(func)()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_is_used_when_the_gpu_is_full():
    def func(x):
        return x if x.device.type == "cpu" else torch.empty(2**50, dtype=torch.uint8, device=x.device)

    assert retry_if_cuda_oom(func)(torch.ones(1, device="cuda")).device.type == "cpu"
