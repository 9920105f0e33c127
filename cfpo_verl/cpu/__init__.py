"""Unmodified verl and vLLM on a machine without an accelerator.

Everything here is inactive unless the environment has `VERL_PLATFORM=cpu`, which the config group
`platform=cpu` and `cfpo-verl env cpu` set. It uses the extension points of verl and vLLM. Where there
is none, a function is replaced at run time; each replacement states its reason and is skipped once
upstream no longer needs it.
"""

import os


def is_selected() -> bool:
    """Return whether the environment selects the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def activate_in_verl() -> None:
    """Install the CPU platform and the shims for verl. Calling it again has no effect."""
    from cfpo_verl.cpu import platform, verl_shims, vllm_metadata

    vllm_metadata.install()
    platform.register()
    verl_shims.install()
