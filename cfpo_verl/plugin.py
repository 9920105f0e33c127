"""Entry point of the group `verl.plugins`, imported in every process that imports verl, Ray workers included.

Losses and advantages are registered when verl's registries are imported, and so only in processes that use them: reward
workers and vLLM's servers neither wait for it nor hold its memory (`python -m benchmarks.imports`). verl never calls
anything here. Importing this twice, or through VERL_USE_EXTERNAL_MODULES as well, changes nothing.
"""

import logging
from importlib import import_module
from types import ModuleType

import wrapt

import cfpo_verl.resolvers  # noqa: F401 - Ray workers resolve our config files
from cfpo_verl import cpu, sockets
from cfpo_verl.compat import check_verl_version

check_verl_version()

# The CPU platform must be in place before verl asks for its device.
if cpu.is_selected():
    cpu.activate_in_verl()


@wrapt.when_imported("verl.trainer.ppo.core_algos")
def _register(_core_algos: ModuleType) -> None:
    try:
        import_module("cfpo_verl.registration")
    except Exception:
        # A run with a loss of verl's must not end for it. One with ours does: its options refuse to be built.
        logging.getLogger(__name__).exception("the losses and advantages of cfpo_verl cannot be registered")


sockets.install_if_selected()
