"""Where studies are kept: a file of this machine, or a database that many machines share."""

import re
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend


def driver(error: BaseException) -> str:
    """The package that a database's URL asks for, and what brings it."""
    causes: list[BaseException | None] = [error]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    name = next((cause.name for cause in causes if isinstance(cause, ModuleNotFoundError)), None)
    extra = {"psycopg2": "postgresql", "psycopg": "postgresql", "pymysql": "mysql", "MySQLdb": "mysql"}.get(name or "")
    hint = f": pip install -e '.[{extra}]'" if extra else ""
    url = "; write mysql+pymysql://…" if name == "MySQLdb" else ""
    return f"the package {name or 'of its driver'}, which is not installed{hint}{url}"


def without_password(place: str) -> str:
    """A database's URL as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", place)


def open_storage(place: str) -> optuna.storages.BaseStorage:
    """A storage for studies: a database URL (sqlite:///file, postgresql://…), or a path of a journal file.

    Other machines' trials that died are noticed by their missing heartbeat where the storage is a server.
    """
    if "://" not in place:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(place))
    if place.startswith("sqlite:///"):
        Path(place.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return RDBStorage(place, engine_kwargs={"connect_args": {"timeout": 60}})  # workers wait for each other
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat
        again = RetryHeartbeatStaleTrialCallback()
        return RDBStorage(place, heartbeat_interval=60, heartbeat_stale_trial_callback=again)
