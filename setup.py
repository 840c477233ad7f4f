"""Metadata of the package. Importing it needs nothing but setuptools."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Put the YAML files of configs/ into the built package, where ``detlib.model_zoo`` finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "detlib" / "model_zoo" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


def version() -> str:
    text = (ROOT / "detlib" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE).group(1)


setup(
    name="detlib",
    version=version(),
    description="Detection models from a config, without a compiler: detectron2's interface on today's torch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["detlib", "detlib.*"]),
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.24",
        "pillow>=9.4",
        "yacs>=0.1.8",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "pycocotools>=2.0.6",
        "opencv-python>=4.6",
        "shapely>=2.0",  # fvcore crops polygons with it.
        "tqdm>=4.60",
        "tabulate>=0.8",
        "termcolor>=1.1",
        "matplotlib>=3.6",
        "tensorboard>=2.11",
    ],
    extras_require={
        "fast-eval": ["faster-coco-eval>=1.6"],
        "safetensors": ["safetensors>=0.4"],
        "timm": ["timm>=1.0"],
        "tracking": ["scipy>=1.10"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "faster-coco-eval>=1.6",
            "safetensors>=0.4",
            "scipy>=1.10",
            "timm>=1.0",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
