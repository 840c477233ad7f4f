import torch

from detlib.utils.collect_env import collect_env_info


def test_report_names_versions_and_variables(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "12345")
    report = collect_env_info()
    for expected in ("detlib", torch.__version__, "torchvision", "Python", "12345"):
        assert expected in report
