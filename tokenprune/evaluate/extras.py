"""Optional packages: a clear way out instead of a bare ImportError."""

from importlib import import_module
from types import ModuleType

EVAL_PACKAGES = ("matplotlib", "pandas", "pyarrow", "statsmodels", "jinja2")


def need(module: str) -> ModuleType:
    """Import a module of the `eval` extra.

    Args:
        module: for example "pyarrow.parquet".

    Raises:
        ImportError: says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f'this needs the package {package}; install it with: pip install "tokenprune-lmm[eval]"'
        ) from error
