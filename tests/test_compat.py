"""cfpo_verl.compat: which versions are accepted."""

import pytest

from cfpo_verl import compat
from cfpo_verl.compat import UnsupportedAntlrError, UnsupportedVerlError, check_antlr_version, check_verl_version


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.9.10"])
def test_accepts_the_tested_range(version):
    assert check_verl_version(version) == version


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "0.10.0.dev0", "1.0"])
def test_refuses_other_versions_naming_the_range(version):
    with pytest.raises(UnsupportedVerlError, match=rf"verl {version} is not supported.*<0.10,>=0.9.1.*pip install"):
        check_verl_version(version)


@pytest.mark.parametrize(("installed", "is_right"), [("4.9.3", True), ("4.7.2", False), ("4.13.2", False)])
def test_antlr(monkeypatch, installed, is_right):
    monkeypatch.setattr(compat, "version", lambda _name: installed)
    if is_right:
        check_antlr_version()
    else:
        with pytest.raises(UnsupportedAntlrError, match=rf"antlr4-python3-runtime is {installed}, and Hydra's parser"):
            check_antlr_version()
