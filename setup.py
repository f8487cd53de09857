"""Build the man page with the package, and say what it is; everything else is in setup.cfg."""

import os
import re
import sys
from pathlib import Path

from build_manpages import build_manpages, get_build_py_cmd, get_install_cmd
from setuptools import setup

# The page is made from fmconsume.cli, and a PEP 517 build does not put the project on the path.
HOUSE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HOUSE)


class BuildPage(build_manpages):
    """Builds the page without a link and a date that mandoc would complain about."""

    def run(self):
        for data in self.manpages_data.values():
            data["url"] = None
        super().run()
        for page in map(Path, self.manpages_data):
            title, newline, text = page.read_text(encoding="utf-8").partition("\n")
            page.write_text(title.replace("\\-", "-") + newline + text, encoding="utf-8")


def description():
    """Give the README without links into the source: PyPI shows none of its other files."""
    text = Path(HOUSE, "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[([^]]*)\]\((?!https:)([^)]*)\)", r"\1: `\2`", text)
    return re.sub(r"\[([^]]*)\]\((?!https:|#)[^)]*\)", r"\1", text)


setup(
    long_description=description(),
    cmdclass={
        "build_manpages": BuildPage,
        "build_py": get_build_py_cmd(),
        "install": get_install_cmd(),
    },
)
