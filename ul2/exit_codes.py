"""The exit codes of every command; `docs/exit_codes.md` says what to do about each."""

from typing import Final

DONE: Final = 0
# Nobody foresaw it, or it cannot be mended by a flag: memory, bad numbers, a bug.
FAILURE: Final = 1
# What was asked for is wrong; one line says how.
USAGE: Final = 2
# Of sysexits.h, "error while doing I/O": nothing could be saved; make room first.
STORAGE: Final = 74
# "Temporary failure": what was done is right, start the same command again.
RESTART: Final = 75
# As if the signal SIGPIPE had ended it (128 + 13): nobody reads what it prints.
CLOSED_PIPE: Final = 141
