"""Errors that a user can cause, all under :class:`DetlibError`.

Each also derives from the built-in exception that the field's code catches. The message says what came, what was
expected and what to do; the command line tools print it as one line, without a traceback.
"""

__all__ = [
    "CheckpointError",
    "ConfigAssertionError",
    "ConfigError",
    "ConfigKeyError",
    "ConfigRuntimeError",
    "ConfigTypeError",
    "CustomImportError",
    "DamagedCheckpointError",
    "DatasetError",
    "DetlibError",
    "DuplicateNameError",
    "MissingFileError",
    "NonFiniteError",
    "UnknownNameError",
]


class DetlibError(Exception):
    """Base of the errors that bad input causes."""

    __str__ = Exception.__str__  # KeyError would print the repr of its message.


class ConfigError(DetlibError, ValueError):
    """A config file, key or value is not usable."""

    __str__ = DetlibError.__str__


class ConfigAssertionError(ConfigError, AssertionError):
    """A part refuses an argument, or what the other parts give it."""

    __str__ = DetlibError.__str__


class ConfigKeyError(ConfigError, KeyError, AttributeError):
    """A config has no such key."""

    __str__ = DetlibError.__str__


class ConfigRuntimeError(ConfigError, RuntimeError):
    """A model that a config describes does not do what it must."""

    __str__ = DetlibError.__str__


class ConfigTypeError(ConfigError, TypeError):
    """A value of a config is of a wrong type, or no argument of the part that it is given to."""

    __str__ = DetlibError.__str__


class CustomImportError(ConfigError, ImportError):
    """A module that a config asks for cannot be imported."""

    __str__ = DetlibError.__str__


class DuplicateNameError(DetlibError, AssertionError, KeyError):
    """A registry has an entry of that name already."""

    __str__ = DetlibError.__str__


class UnknownNameError(DetlibError, KeyError):
    """A registry or catalog has no entry of that name."""

    __str__ = DetlibError.__str__


class DatasetError(DetlibError, ValueError):
    """A dataset or one of its annotations is not usable."""

    __str__ = DetlibError.__str__


class CheckpointError(DetlibError, RuntimeError):
    """A checkpoint is damaged, unsafe to read or does not fit the model."""

    __str__ = DetlibError.__str__


class DamagedCheckpointError(CheckpointError):
    """A checkpoint cannot be read, as it is cut short or otherwise not what was written."""

    __str__ = DetlibError.__str__


class MissingFileError(DetlibError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    __str__ = DetlibError.__str__


class NonFiniteError(DetlibError, FloatingPointError):
    """Numbers became NaN or infinite in training."""

    __str__ = DetlibError.__str__
