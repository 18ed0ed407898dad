"""Build the API reference out of the docstrings: `make docs`. A warning ends it, so that CI finds what is broken."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import pdoc

import p2pnet


def main() -> None:
    """Write the pages into the folder that the command line names."""
    if (
        importlib.util.find_spec("triton") is None
    ):  # it comes with CUDA only; what is documented of the kernels is Python
        sys.modules |= {name: MagicMock() for name in ("triton", "triton.language")}
    warnings.simplefilter("error", UserWarning)  # pdoc's: a name that does not resolve, a default that cannot be shown
    for name in p2pnet.__all__:
        getattr(p2pnet, name)  # they come when they are used, and pdoc looks only at what is there
    pdoc.render.configure(docformat="markdown", footer_text=f"p2pnet {p2pnet.__version__}", search=False)
    inside = [found.name for found in pkgutil.iter_modules(p2pnet.__path__, "p2pnet.")]  # pdoc looks into packages
    pdoc.pdoc("p2pnet", *inside, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
