"""Where the configuration lies: packages that were installed without it say so in one sentence."""

import pytest

from marl.config import conf_tree
from marl.core.errors import UserError


def test_packages_without_the_configuration(tmp_path) -> None:
    conf_tree.require()
    with pytest.raises(UserError, match=r"conf: is not there\. .* `pip install -e \."):
        conf_tree.require(tmp_path / "conf")
