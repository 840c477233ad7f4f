from detlib.config import get_cfg
from detlib.config.config import format_with_origins


def from_file(path):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg


def test_each_value_tells_who_set_it(write):
    base = write("base.yaml", "SOLVER:\n  GAMMA: 0.5\n  BASE_LR: 0.5\n")
    path = write("a.yaml", "_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n")
    cfg = from_file(path)
    cfg.merge_from_list(["SEED=1"])
    cfg.VIS_PERIOD = 7
    lines = {" ".join(line.split()) for line in format_with_origins(cfg).splitlines()}
    assert f"GAMMA: 0.5 # {base}:2" in lines
    assert f"BASE_LR: 0.25 # {path}:2" in lines
    assert "SEED: 1 # command line" in lines
    assert "VIS_PERIOD: 7 # code" in lines
    assert "MOMENTUM: 0.9 # default" in lines


def test_output_reads_back(write):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "3", "DATASETS.TRAIN", "('a', 'b')"])
    assert from_file(write("a.yaml", format_with_origins(cfg))) == cfg


def test_merging_another_config_keeps_its_origins(write):
    path = write("a.yaml", "SEED: 1")
    cfg = get_cfg()
    cfg.merge_from_other_cfg(from_file(path))
    assert f"# {path}:1" in format_with_origins(cfg)


def test_keys_of_a_part_need_not_be_text():
    cfg = get_cfg()
    cfg.merge_from_other_cfg({"MODEL": {"NECK": {"NAME": "X", 3: 4}}})
    assert "    3: 4 " in format_with_origins(cfg)
