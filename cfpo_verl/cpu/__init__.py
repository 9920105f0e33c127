"""Unmodified verl and vLLM on a machine without an accelerator.

Everything here is inert until the environment says `VERL_PLATFORM=cpu`, which the config group
`platform=cpu` and `cfpo-verl env cpu` do. What verl and vLLM offer as extension points is used as
such; the few places where they offer none are replaced at run time, each with its reason and with
a check that skips it once upstream no longer needs it.
"""

import os


def is_selected() -> bool:
    """Say whether the environment selects the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def activate_in_verl() -> None:
    """Put the CPU platform and verl's shims in place. Calling it again changes nothing."""
    from cfpo_verl.cpu import platform, verl_shims, vllm_metadata

    vllm_metadata.install()
    platform.register()
    verl_shims.install()
