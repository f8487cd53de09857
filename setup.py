"""Build the man page with the package; everything else is in setup.cfg."""

import os
import sys

from build_manpages import build_manpages, get_build_py_cmd, get_install_cmd
from setuptools import setup

# The page is made from fmconsume.cli, and a PEP 517 build does not put the project on the path.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

setup(
    cmdclass={
        "build_manpages": build_manpages,
        "build_py": get_build_py_cmd(),
        "install": get_install_cmd(),
    }
)
