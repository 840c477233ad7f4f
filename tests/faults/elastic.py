"""What torchrun starts: a training of which the second process kills itself in an iteration of its first life."""

import os
import signal
import sys

from tests.faults.training import At, arguments_of, verify_resume

config, folder, iteration = sys.argv[1], sys.argv[2], int(sys.argv[3])
dies = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
sys.argv = arguments_of(config, folder)
verify_resume.run_recorded(At(iteration, lambda hook: os.kill(os.getpid(), signal.SIGKILL)) if dies else None)
