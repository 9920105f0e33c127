"""Clipping-Free Policy Optimization (CFPO, arXiv:2601.22801) for verl, as a plugin.

Importing this package has no side effects: registration happens in `cfpo_verl.plugin`.
"""

__version__ = "0.3.0"
