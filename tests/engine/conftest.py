import logging

import pytest


@pytest.fixture
def log(caplog, loggers_as_before):
    """What detlib logs, also once its logger has handlers of its own."""
    logger = logging.getLogger("detlib")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    return caplog
