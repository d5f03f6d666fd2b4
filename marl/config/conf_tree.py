"""Where the configuration's files lie, and which options its groups have."""

from pathlib import Path

import marl
from marl.core.errors import UserError

CONF = Path(marl.__file__).resolve().parent.parent / "conf"


def require(conf: Path = CONF) -> None:
    """Raises UserError where the packages were installed without the configuration, which lies beside them."""
    if not conf.is_dir():
        raise UserError(
            f"{conf}: is not there. The packages read conf/ from the checkout or the unpacked source archive: install "
            "there with `pip install -e . -c constraints.txt`"
        )


def group_options(group: str) -> list[str]:
    """The options of a group of the configuration, such as `vmas/balance` of `env`; what lies in `base` is a part."""
    paths = [path.relative_to(CONF / group).with_suffix("") for path in (CONF / group).rglob("*.yaml")]
    return sorted(str(path) for path in paths if "base" not in path.parts[:-1])
