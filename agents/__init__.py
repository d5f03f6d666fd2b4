"""Multi-agent reinforcement learning: tasks, algorithms, models, collection, evaluation, players, deployment."""

from marl.core.imports import on_demand

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "APG": "agents.building.algorithms",
        "IDDPG": "agents.building.algorithms",
        "IPPO": "agents.building.algorithms",
        "IQL": "agents.building.algorithms",
        "ISAC": "agents.building.algorithms",
        "MADDPG": "agents.building.algorithms",
        "MAPPO": "agents.building.algorithms",
        "MASAC": "agents.building.algorithms",
        "MATD3": "agents.building.algorithms",
        "PQN": "agents.building.algorithms",
        "PQN_VDN": "agents.building.algorithms",
        "QMIX": "agents.building.algorithms",
        "SHAC": "agents.building.algorithms",
        "VDN": "agents.building.algorithms",
        "Policy": "agents.policies.policy",
        "live_page": "agents.deploy.live_page",
        "make_task": "agents.building.tasks",
        "replay_page": "agents.deploy.live_page",
        "show_page": "agents.deploy.page_frame",
    },
)
