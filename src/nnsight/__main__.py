"""Commands: `demo [MODEL]`, a model opened up; `serve MODEL`, where blocks of others run."""

from __future__ import annotations

import argparse

from nnsight.server import cli
from nnsight.version import __version__


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
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command of the package."""
    options = _parser().parse_args(argv)
    if options.command == "serve":
        cli.main(options)
        return
    from nnsight.toolbox.demo import demo  # the model libraries load only for the demo itself

    demo(options.model, options.clean, options.corrupted, options.plot)


if __name__ == "__main__":
    main()
