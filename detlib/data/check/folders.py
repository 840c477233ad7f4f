"""Folders of images, and lists of them."""

import functools
import os

from PIL import Image

from detlib.data.check.dataset import CheckedDataset
from detlib.data.datasets.image_folder import IMAGE_ENDINGS, names_in_folder, numbered_lines, sample_of_line
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DetlibError, MissingFileError

__all__ = ["find_files_left_out", "read_image_list"]


def read_image_list(data: CheckedDataset) -> None:
    """Read a list of images line by line, where the loader stops at the first mistake."""
    metadata = data.metadata
    data.class_names = list(metadata.classes)
    names_in = functools.cache(names_in_folder)
    folder = Folder(metadata.image_root, metadata.list_file, metadata.allow_outside)
    try:
        lines = list(numbered_lines(metadata.list_file))
    except DetlibError as error:
        data.report("not-loadable", str(error), file=metadata.list_file)
        return
    for number, line in lines:
        try:
            data.samples.append(sample_of_line(number, line, folder, data.class_names, names_in))
        except DetlibError as error:
            kind = "image-missing" if isinstance(error, MissingFileError) else "bad-entry"
            data.report(kind, str(error), file=metadata.list_file)
    if not lines:
        data.report("not-loadable", "it lists no image", file=metadata.list_file)


def find_files_left_out(data: CheckedDataset) -> None:
    """Report images in the folder of a dataset that its loader does not take.

    That is because of the ending of their name, or as they lie beside the folders of classes.
    """
    root, known = data.metadata.image_root, Image.registered_extensions()
    taken = {os.path.realpath(sample["file_name"]) for sample in data.samples}
    for path, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            file, ending = os.path.join(path, name), os.path.splitext(name)[1].lower()
            if name.startswith(".") or ending not in known or os.path.realpath(file) in taken:
                continue
            beside = f"it is in no folder of a class below {root}"
            data.report("file-left-out", beside if ending in IMAGE_ENDINGS else f"its name ends in {ending}", file=file)
