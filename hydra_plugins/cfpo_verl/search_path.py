"""Hydra search path plugin. Every Hydra application imports it, so it imports little more than Hydra."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import cfpo_verl.resolvers  # noqa: F401 - what our config files calculate with


class CfpoVerlSearchPath(SearchPathPlugin):
    """Appends our groups after the application's own, so that they can never shadow a file of verl's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append `pkg://cfpo_verl.hydra_configs` to `search_path`."""
        search_path.append(provider="cfpo_verl", path="pkg://cfpo_verl.hydra_configs")
