"""The two modules of the module-graph tutorial, written by hand: a plain network and a classifier head."""

from .modules import CustomHead, CustomNet

__all__ = ["CustomHead", "CustomNet"]
