"""A process that runs the commands of many pages, so that jax starts once.

    python command_server.py SOCKET

A page's `ul2` and `python` are scripts that send their arguments here (`CLIENT`); what
runs is `ul2.cli.main`, with the directory and the environment of the sender. A request
is one line of JSON, an answer one more: what was written, and the exit code.
"""

import contextlib
import io
import json
import os
import runpy
import shlex
import socket
import sys
import traceback
from typing import Any, Final

CLIENT: Final = """\
#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    request = dict(program={program!r}, arguments=sys.argv[1:], cwd=os.getcwd(),
                   environment=dict(os.environ))
    server.sendall(json.dumps(request).encode() + b"\\n")
    answer = json.loads(server.makefile().readline())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["code"])
"""
_namespaces: dict[str, dict[str, Any]] = {}


def serve(path: str) -> None:
    """Answers one request after the other, until a line is empty."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(16)
        print("ready", flush=True)  # noqa: T201
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as file:
                line = file.readline()
                if not line.strip():
                    return
                file.write(json.dumps(answer(json.loads(line))) + "\n")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one request."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ), list(sys.path), list(sys.argv)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _run(request)
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        sys.path[:], sys.argv[:] = before[1], before[2]
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code}


def _run(request: dict[str, Any]) -> int:
    program, arguments = request["program"], request["arguments"]
    try:
        if program == "ul2":
            return _ul2(arguments)
        if program == "block":
            # The Python blocks of a page share their names.
            names = _namespaces.setdefault(request["cwd"], {"__name__": "__page__"})
            exec(compile(arguments[0], "block", "exec"), names)
            return 0
        sys.argv[:] = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _ul2(arguments: list[str]) -> int:
    """Runs a command of ours, at the scale that its page states."""
    from ul2 import cli

    toys = json.loads(os.environ.get("UL2_DOCS_TOYS", "{}"))
    name = f"ul2 {arguments[0]}" if arguments else "ul2"
    arguments = [*arguments, *shlex.split(toys.get(name, ""))]
    instead = os.environ.get("UL2_DOCS_INSTEAD")
    if instead == "check" and name == "ul2 train":
        arguments[0] = "check"
    if instead == "parse":
        return _parse(arguments)
    return cli.main(arguments)


def _parse(arguments: list[str]) -> int:
    """Parses a command; looks up its files, macros, tasks and presets."""
    from doc_names import problems_of

    from ul2 import cli
    from ul2.cli.flags import take_gin_flags

    bindings, rest = take_gin_flags(arguments)
    options = cli._parser().parse_args(rest)
    problems = problems_of(options, bindings)
    for problem in problems:
        sys.stderr.write(problem + "\n")
    return 2 if problems else 0


if __name__ == "__main__":
    serve(sys.argv[1])
    # Libraries take their time to say farewell, and nothing is left to be done.
    os._exit(0)
