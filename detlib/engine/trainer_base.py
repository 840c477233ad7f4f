"""The loop that all trainers share, and the hooks that do everything beside it."""

import logging
import weakref
from typing import Any

from detlib.engine.diagnosis import explain
from detlib.utils.errors import DetlibError
from detlib.utils.events import EventStorage

__all__ = ["HookBase", "TrainerBase", "is_due", "is_finished", "is_last_step"]

logger = logging.getLogger(__name__)


class HookBase:
    """Work beside the loop: override the events you need, and read what you need from :attr:`trainer`.

    The trainer calls ``before_train`` and ``after_train`` once (the latter also if the training fails), the others
    in each iteration, each event for all hooks in the order in which they were registered. ``trainer.iter`` is the
    current iteration; in ``after_train`` it equals ``trainer.max_iter`` only if the training went to its end.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to resume; an empty dict if there is nothing."""
        return {}


class TrainerBase:
    """The loop, its hooks and its storage; a subclass says in ``run_step`` what an iteration does."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Adds hooks, to be called in this order after those that are there. None is left out."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must derive from HookBase, but a {type(hook).__name__} came")
            # A strong reference would be a cycle that keeps the model in memory after the trainer is gone.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs iterations ``start_iter`` to ``max_iter - 1``.

        A hook ends the training by setting :attr:`max_iter` to the number of the next iteration.
        """
        logger.info("Training from iteration %d to %d.", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    if self.iter >= self.max_iter:  # A hook has ended the training.
                        break
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, self.max_iter)
            except Exception as error:
                explained = explain(self, error)
                if isinstance(explained, DetlibError):
                    shown = None if isinstance(error, DetlibError) else error
                    logger.error("The training stopped in iteration %d: %s", self.iter, explained, exc_info=shown)
                else:
                    logger.exception("The training failed in iteration %d.", self.iter)
                if explained is error:
                    raise
                raise explained from error
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define run_step()")

    def state_dict(self) -> dict[str, Any]:
        """The iteration that finished last and the state of the hooks, by class name."""
        hooks = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, "hooks": hooks} if hooks else {"iteration": self.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state for the hook %s, which this training does not use.", name)
            else:
                hook.load_state_dict(state)


def is_due(hook: HookBase, period: int) -> bool:
    """Whether this iteration is the last of a period; 0 is none."""
    return period > 0 and (hook.trainer.iter + 1) % period == 0


def is_last_step(hook: HookBase) -> bool:
    """Whether, in a step, this is the last one."""
    return hook.trainer.iter + 1 == hook.trainer.max_iter


def is_finished(hook: HookBase) -> bool:
    """Whether, in ``after_train``, the training went to its end."""
    return hook.trainer.iter >= hook.trainer.max_iter
