"""The command `p2pnet`: one module per verb, each thin, each importing what it needs only when it runs."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import resource
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

import p2pnet
from p2pnet.cli.logs import start_logging
from p2pnet.errors import ConfigError, P2pnetError, as_config_error

TRAIN_EXTRA: Final = frozenset({"torch", "numpy", "safetensors", "matplotlib"})
FILES_WANTED: Final = 8192  # each stream is one, others may open 2048, and many systems allow 256 or 1024
PANELS: Final = {
    "Train": ("demo", "join", "status", "pause", "resume", "leave", "log", "export"),
    "Launch": ("swarm", "simulate"),
    "Operate": ("bootstrap", "daemon", "key"),
}


class Verbs(TyperGroup):
    """Ends every verb the same way: what the operator can understand is one message and an exit status."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order in which a newcomer needs them."""
        return [verb for verbs in PANELS.values() for verb in verbs if verb in self.commands]

    def invoke(self, ctx: Any) -> Any:
        """Run a verb. Exit status 2 for what the operator has to put right, 1 for the rest, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise _end(str(error), 2) from None
        except P2pnetError as error:
            raise _end(str(error), 1) from None
        except OSError as error:
            known = as_config_error(error)
            if known is None:
                raise
            raise _end(str(known), 2) from None
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
                raise
            raise _end(f"this needs {error.name}: pip install 'p2pnet[train]'", 2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def allow_files(wanted: int = FILES_WANTED) -> None:
    """Allow this process as many open files as a node under load needs, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _end(message: str, status: int) -> typer.Exit:
    typer.echo(f"p2pnet: {message}", err=True)
    return typer.Exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"p2pnet {p2pnet.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say on stderr what is going on; -vv says it all.")
    ] = 0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON, a line per record, on stderr.")] = False,
) -> None:
    """Train neural networks peer to peer, over the open internet, with no central part.

    See it work on this machine:    p2pnet demo
    Join a swarm with its link:     p2pnet join 'p2pnet://...'
    See how it goes, let it rest:   p2pnet status, p2pnet pause, p2pnet resume
    End it, take the model:         p2pnet leave, p2pnet export model.safetensors
    Launch a swarm of your own:     p2pnet swarm init
    See first how it would go:      p2pnet simulate
    Host a peer to start from:      p2pnet bootstrap
    Under systemd:                  p2pnet --log-json join 'p2pnet://...'
    """
    start_logging({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG), log_json)
    allow_files()


def make_app() -> typer.Typer:
    """Build the command line from the verbs that are there."""
    app = typer.Typer(
        cls=Verbs,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for panel, verbs in PANELS.items():
        for verb in verbs:
            name = f"{__name__}.{verb}"
            if importlib.util.find_spec(name) is None:
                continue
            module = importlib.import_module(name)
            if hasattr(module, "app"):
                app.add_typer(module.app, name=verb, rich_help_panel=panel)
            else:
                app.command(verb, rich_help_panel=panel)(getattr(module, verb))
    return app


def main() -> None:
    """Run the command line; the console script `p2pnet`."""
    make_app()(prog_name="p2pnet")
