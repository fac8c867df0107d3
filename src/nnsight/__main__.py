"""Commands: a model opened up; what a server tells; a server of your own."""

from __future__ import annotations

import argparse

from nnsight.server import cli
from nnsight.version import __version__

_ABOUT_A_SERVER = {
    "status": "which models the server has deployed",
    "compare": "which packages differ between here and the server",
    "login": "ask for a key, try it, and keep it",
    "whoami": "whom the server knows by the key",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnsight", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="open a model: tree, logit lens, activation patching")
    demo.add_argument("model", nargs="?", help="a folder or a hub id; the embedded model if absent")
    demo.add_argument("--clean", help="the prompt whose activations are patched in")
    demo.add_argument("--corrupted", help="the prompt that they are patched into")
    demo.add_argument("--plot", default="demo_patching.png", help="where the heatmap is written")
    serve = commands.add_parser("serve", help="run the blocks of clients on models of this machine")
    cli.add_arguments(serve)
    for name, does in _ABOUT_A_SERVER.items():
        commands.add_parser(name, help=does)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command of the package; the exit status is returned."""
    options = _parser().parse_args(argv)
    if options.command == "serve":
        cli.main(options)
        return 0
    if options.command in _ABOUT_A_SERVER:
        return _ask(options.command)
    from nnsight.toolbox.demo import demo  # the model libraries load only for the demo itself

    demo(options.model, options.clean, options.corrupted, options.plot)
    return 0


def _ask(command: str) -> int:
    from nnsight.remote import service  # likewise

    found = getattr(service, command)()
    if not isinstance(found, bool | None):
        print(found)
    return int(found is None or found is False or getattr(found, "problem", None) is not None)


if __name__ == "__main__":
    raise SystemExit(main())
