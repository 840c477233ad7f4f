from detlib.config import get_cfg, global_cfg, set_global_cfg


def test_global_cfg_has_the_options_that_were_set():
    cfg = get_cfg()
    cfg.GLOBAL.HACK = 2.0
    set_global_cfg(cfg)
    try:
        assert global_cfg.GLOBAL.HACK == 2.0
    finally:
        global_cfg.clear()
