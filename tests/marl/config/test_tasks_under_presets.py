"""Every VMAS task as BenchMARL 1.5.2 sets it, also under a preset that was made for another one."""

import pytest

from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build

# benchmarl/conf/task/vmas/*.yaml of BenchMARL 1.5.2, without dispersion's n_food: 4, which is VMAS's default there.
TASKS = {
    "balance": {"max_steps": 100, "n_agents": 4, "random_package_pos_on_line": True, "package_mass": 5},
    "ball_passage": {"max_steps": 500, "n_passages": 1, "fixed_passage": False, "random_start_angle": True},
    "ball_trajectory": {"max_steps": 100, "joints": True},
    "buzz_wire": {"max_steps": 100, "random_start_angle": True, "collision_reward": -10},
    "discovery": {
        "max_steps": 100, "n_agents": 5, "n_targets": 7, "lidar_range": 0.35, "covering_range": 0.25,
        "agents_per_target": 2, "targets_respawn": True, "shared_reward": True,
    },
    "dispersion": {
        "max_steps": 100, "n_agents": 4, "share_reward": True, "food_radius": 0.02,
        "penalise_by_time": False,
    },
    "dropout": {"max_steps": 100, "n_agents": 4, "energy_coeff": 0.02, "start_same_point": False},
    "flocking": {"max_steps": 100, "n_agents": 4, "n_obstacles": 5, "collision_reward": -0.1},
    "football": {
        "max_steps": 500, "n_blue_agents": 3, "n_red_agents": 3, "ai_red_agents": True, "physically_different": False,
        "spawn_in_formation": False, "only_blue_formation": True, "formation_agents_per_column": 2,
        "randomise_formation_indices": False, "formation_noise": 0.2, "n_traj_points": 0, "ai_strength": 1.0,
        "ai_decision_strength": 1.0, "ai_precision_strength": 1.0, "agent_size": 0.025, "goal_size": 0.35,
        "goal_depth": 0.1, "pitch_length": 3.0, "pitch_width": 1.5, "ball_mass": 0.25, "ball_size": 0.02,
        "u_multiplier": 0.1, "enable_shooting": False, "u_rot_multiplier": 0.0003, "u_shoot_multiplier": 0.6,
        "shooting_radius": 0.08, "shooting_angle": 1.5708, "max_speed": 0.15, "ball_max_speed": 0.3,
        "dense_reward": True, "pos_shaping_factor_ball_goal": 10.0, "pos_shaping_factor_agent_ball": 0.1,
        "distance_to_ball_trigger": 0.4, "scoring_reward": 100.0, "observe_teammates": True,
        "observe_adversaries": True, "dict_obs": False,
    },
    "give_way": {
        "max_steps": 100, "mirror_passage": False, "observe_rel_pos": False, "done_on_completion": False,
        "final_reward": 0.01,
    },
    "joint_passage": {
        "max_steps": 500, "n_passages": 1, "fixed_passage": True, "joint_length": 0.5, "random_start_angle": True,
        "random_goal_angle": True, "observe_joint_angle": False, "asym_package": True, "mass_ratio": 5,
        "mass_position": 0.75,
    },
    "joint_passage_size": {
        "max_steps": 500, "n_passages": 3, "fixed_passage": False, "random_start_angle": False,
        "random_goal_angle": False, "observe_joint_angle": False,
    },
    "multi_give_way": {"max_steps": 200, "agent_collision_penalty": -0.1},
    "navigation": {
        "max_steps": 100, "n_agents": 3, "collisions": True, "agents_with_same_goal": 1, "split_goals": False,
        "observe_all_goals": False, "shared_rew": False, "lidar_range": 0.35, "agent_radius": 0.1,
    },
    "passage": {"max_steps": 500, "n_passages": 1, "shared_reward": True},
    "reverse_transport": {
        "max_steps": 100, "n_agents": 4, "package_width": 0.6, "package_length": 0.6, "package_mass": 50,
    },
    "sampling": {
        "max_steps": 100, "n_agents": 3, "shared_rew": False, "n_gaussians": 3, "lidar_range": 0.2, "cov": 0.05,
        "collisions": True, "spawn_same_pos": False,
    },
    "mpe/simple_adversary": {"max_steps": 100, "n_agents": 3, "n_adversaries": 1},
    "mpe/simple_crypto": {"max_steps": 100, "dim_c": 4},
    "mpe/simple_push": {"max_steps": 100},
    "mpe/simple_reference": {"max_steps": 100},
    "mpe/simple_speaker_listener": {"max_steps": 100},
    "mpe/simple_spread": {"max_steps": 100, "n_agents": 3, "obs_agents": True},
    "mpe/simple_tag": {
        "max_steps": 100, "num_good_agents": 1, "num_adversaries": 3, "num_landmarks": 2, "shape_agent_rew": False,
        "shape_adversary_rew": False, "agents_share_rew": False, "adversaries_share_rew": True,
        "observe_same_team": True, "observe_pos": True, "observe_vel": True, "bound": 1.0, "respawn_at_catch": False,
    },
    "mpe/simple_world_comm": {
        "max_steps": 100, "num_good_agents": 2, "num_adversaries": 4, "num_landmarks": 1, "num_food": 2,
        "num_forests": 2,
    },
    "transport": {
        "max_steps": 100, "n_agents": 4, "n_packages": 1, "package_width": 0.15, "package_length": 0.15,
        "package_mass": 50,
    },
    "wheel": {"max_steps": 100, "n_agents": 4, "line_length": 1, "line_mass": 30, "desired_velocity": 0.05},
    "wind_flocking": {
        "max_steps": 100, "horizon": 100, "dist_shaping_factor": 1, "vel_shaping_factor": 1, "wind_shaping_factor": 1,
        "rot_shaping_factor": 0, "pos_shaping_factor": 0, "energy_shaping_factor": 0, "wind": 0,
        "cover_angle_tolerance": 1, "observe_rel_pos": True, "observe_rel_vel": True, "observe_pos": False,
        "desired_vel": 0.4,
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_benchmarls_under_a_preset_of_another(name: str) -> None:
    env = compose.compose(["experiment=benchmarl_balance", f"env=vmas/{name}"]).env
    expected, settings = TASKS[name], {"max_steps": env.max_steps, **env.scenario_kwargs}
    assert {key: settings[key] for key in expected} == {
        key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for key, value in expected.items()
    }
    assert env.num_envs == 600  # the rest is the preset's


def test_a_scenario_without_the_preset_s_keyword_is_built() -> None:
    how = ["experiment=benchmarl_balance", "env=vmas/give_way", "env.num_envs=2", "env.fast=off", "frames=400"]
    config = compose.check(compose.compose([*how, "algo.minibatch_size=100", "trainer.progress=off"]))
    task = build.build_task(config)
    assert task.env.world.settings["scenario_kwargs"]["final_reward"] == 0.01
    assert config["algo"]["gamma"] == 0.9 and config["optimizer"]["lr"] == 5e-5  # the rest is the preset's


def test_what_is_given_by_hand_stays() -> None:
    by_hand = ["env.scenario_kwargs.n_agents=3", "env.max_steps=70", "env.scenario_kwargs.speed=2"]
    env = compose.compose(["experiment=benchmarl_balance", "env=vmas/ball_passage", *by_hand]).env
    assert env.max_steps == 70 and env.scenario_kwargs.n_agents == 3 and env.scenario_kwargs.speed == 2
    with pytest.raises(UserError, match="env.scenario_kwargs.n_agents is not a keyword of scenario 'ball_passage'"):
        how = ["experiment=benchmarl_balance", "env=vmas/ball_passage", "env.fast=off", *by_hand]
        build.build_task(compose.check(compose.compose(how)))


def test_the_preset_s_own_task_is_as_the_preset_says() -> None:
    env = compose.compose(["experiment=football", "env=vmas/football"]).env
    assert env.max_steps == 200 and env.scenario_kwargs.n_blue_agents == 2
    cart = compose.compose(["experiment=cartpole", "env=vmas/wheel"]).env  # of another kind
    assert cart.scenario == "wheel" and cart.max_steps == 100 and "kwargs" not in cart
