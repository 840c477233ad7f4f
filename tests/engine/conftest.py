import logging

import pytest


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Takes away the handlers that trainers add, as they write to the output of the test that is over."""
    loggers = [logging.getLogger(name) for name in ("detlib", "fvcore")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers).difference(handlers):
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def log(caplog, loggers_as_before):
    """What detlib logs, also once its logger has handlers of its own."""
    logger = logging.getLogger("detlib")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    return caplog
