"""Write the completions for bash, zsh and fish below a folder, such as /usr/share."""

import sys
from pathlib import Path

import shtab

from fmconsume.cli import parser

PLACES = {
    "bash": "bash-completion/completions/fmconsume",
    "zsh": "zsh/site-functions/_fmconsume",
    "fish": "fish/vendor_completions.d/fmconsume.fish",
}


def main(folder: Path) -> None:
    """Write them all."""
    command = parser()
    for action in command._actions:
        if str(action.metavar).startswith("FILE"):
            action.complete = shtab.FILE
        elif action.metavar == "FOLDER":
            action.complete = shtab.DIRECTORY
    for shell, place in PLACES.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shtab.complete(command, shell), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
