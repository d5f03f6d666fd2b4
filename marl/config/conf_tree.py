"""Where the configuration's files lie, and which options its groups have."""

from pathlib import Path

import marl

CONF = Path(marl.__file__).resolve().parent.parent / "conf"


def group_options(group: str) -> list[str]:
    """The options of a group of the configuration, such as `vmas/balance` of `env`."""
    return sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml"))
