"""A wheel holds the shipped experiments and sweeps, too: the folders of those names go into the package as `tclx/shipped`."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSpecs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a clone has them beside the package
            for name in ("experiments", "sweeps"):
                copytree(name, Path(self.build_lib) / "tclx" / "shipped" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSpecs})
