"""Makes the config files of log_hinge visible to every Hydra application. All of them import this, so import little."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class LogHingeSearchPath(SearchPathPlugin):
    """Appends our config groups."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append `pkg://log_hinge.hydra_configs` to `search_path`."""
        search_path.append(provider="log_hinge", path="pkg://log_hinge.hydra_configs")
