"""Supported versions of verl and of the runtime of Hydra's parser."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from cfpo_verl.errors import UserError

SUPPORTED_VERL = SpecifierSet(">=0.9.1,<0.10")
# Hydra 1.3 and OmegaConf 2.3 contain generated parsers that only the 4.9 runtime can load.
SUPPORTED_ANTLR = SpecifierSet("==4.9.*")


class UnsupportedVerlError(UserError, ImportError):
    """The installed verl is outside the supported range."""


class UnsupportedAntlrError(UserError, ImportError):
    """Hydra cannot be imported with the installed antlr4-python3-runtime."""


def check_verl_version(installed: str | None = None) -> str:
    """Return the installed version of verl if it is supported.

    Args:
        installed: Version to check instead of the installed one.

    Raises:
        UnsupportedVerlError: If the version is outside `SUPPORTED_VERL`.
    """
    # From the distribution's metadata: verl.__version__ is not set yet while verl loads its plugins.
    installed = installed or version("verl")
    if not SUPPORTED_VERL.contains(installed, prereleases=True):
        raise UnsupportedVerlError(
            f"verl {installed} is not supported: cfpo_verl needs verl {SUPPORTED_VERL}. "
            f"Install one with: pip install 'verl{SUPPORTED_VERL}'"
        )
    return installed


def check_antlr_version() -> None:
    """Check the antlr runtime before Hydra is imported, because Hydra's import fails with another version.

    Raises:
        UnsupportedAntlrError: If it is missing or outside `SUPPORTED_ANTLR`.
    """
    try:
        installed = version("antlr4-python3-runtime")
    except PackageNotFoundError:
        installed = "not installed"
    if installed == "not installed" or not SUPPORTED_ANTLR.contains(installed):
        raise UnsupportedAntlrError(
            f"antlr4-python3-runtime is {installed}, and Hydra's parser needs {SUPPORTED_ANTLR}. "
            "pip install 'antlr4-python3-runtime==4.9.3'. Packages that pin another version, such as "
            "math-verify[antlr4_13_2], cannot be installed in the same environment"
        )
