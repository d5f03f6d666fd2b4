"""Where the configuration's files lie, and which options its groups have."""

from marl.core.imports import CHECKOUT

CONF = CHECKOUT / "conf"


def group_options(group: str) -> list[str]:
    """The options of a group of the configuration, such as `vmas/balance` of `env`; what lies in `base` is a part."""
    paths = [path.relative_to(CONF / group).with_suffix("") for path in (CONF / group).rglob("*.yaml")]
    return sorted(str(path) for path in paths if "base" not in path.parts[:-1])
