"""cfpo_verl.compat: which verl versions are accepted."""

import pytest

from cfpo_verl.compat import UnsupportedVerlError, check_verl_version


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.9.10"])
def test_accepts_the_tested_range(version):
    assert check_verl_version(version) == version


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "0.10.0.dev0", "1.0"])
def test_refuses_other_versions_naming_the_range(version):
    with pytest.raises(UnsupportedVerlError, match=rf"verl {version} is not supported.*<0.10,>=0.9.1.*pip install"):
        check_verl_version(version)
