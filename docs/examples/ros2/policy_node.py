"""A ROS 2 node around control_loop.py: std_msgs/Float32MultiArray in and out, one topic per agent.

    python3 policy_node.py --ros-args -p model:=policy.onnx -p rate:=10.0

Topics: AGENT/observation (in, F numbers), AGENT/action (out, D numbers). Service: ~/reset, when an episode begins.
"""

import signal
import threading
import time
from functools import partial

import rclpy
from control_loop import ControlLoop, Watchdog
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float32MultiArray
from std_srvs.srv import Empty

MISSED = 3  # periods without a step after which the watchdog stops the agents


class PolicyNode(Node):
    """Callbacks run one after the other in the executor's thread; only the watchdog has a thread of its own."""

    def __init__(self) -> None:
        super().__init__("policy")
        rate = self.setting("rate", 10.0)  # per second; VMAS's time step is 0.1 s
        agents = self.setting("agents", "")  # separated by commas; empty: all
        self.loop = ControlLoop(
            self.setting("model", "policy.onnx"),
            rate,
            self.setting("max_age", 2 / rate),  # seconds
            self.setting("max_change", 0.0) or None,  # per second; 0: no limit
            agents.split(",") if agents else None,
        )
        self.status = "stale"
        self.outlets = {a: self.create_publisher(Float32MultiArray, f"{a}/action", 1) for a in self.loop.places}
        for agent in self.loop.places:
            seen = partial(self.seen, agent)
            self.create_subscription(Float32MultiArray, f"{agent}/observation", seen, qos_profile_sensor_data)
        self.create_service(Empty, "~/reset", self.reset)
        self.create_timer(1 / rate, self.tick)
        self.watchdog = Watchdog(MISSED / rate, self.hung, time.monotonic())

    def setting(self, name: str, default: float | str) -> float | str:
        """A parameter of the node."""
        return self.declare_parameter(name, default).value

    def seen(self, agent: str, message: Float32MultiArray) -> None:
        """An observation has come. Its age counts from here; with a stamped message count from its stamp instead."""
        try:
            taken = self.loop.observe(agent, message.data, time.monotonic())
        except ValueError as error:  # another topic's message must not end the node
            self.get_logger().error(str(error))
        else:
            if not taken:
                self.get_logger().warning(f"{agent}: an observation that is not finite was left out")

    def tick(self) -> None:
        """One period: decide, send, tell the watchdog, and log when the status changes."""
        command = self.loop.step(time.monotonic())
        self.send(command.actions)
        self.watchdog.feed(time.monotonic())
        if command.status != self.status:
            self.get_logger().info(f"{self.status} -> {command.status}")
            self.status = command.status
        if command.late:
            self.get_logger().warning("a period was missed")

    def send(self, actions: dict) -> None:
        """Publish the actions {agent: [D]}."""
        for agent, action in actions.items():
            self.outlets[agent].publish(Float32MultiArray(data=[float(number) for number in action]))

    def halt(self) -> None:
        """Send the safe actions."""
        self.send({agent: self.loop.safe(agent) for agent in self.loop.places})

    def hung(self) -> None:
        """The loop hangs. Called from the watchdog's thread."""
        self.halt()
        self.get_logger().error("the control loop hangs: agents were stopped")

    def reset(self, request: Empty.Request, response: Empty.Response) -> Empty.Response:
        """An episode begins."""
        self.loop.reset()
        return response

    def watch(self) -> None:
        """The watchdog's thread."""
        while rclpy.ok():
            self.watchdog.check(time.monotonic())
            time.sleep(self.watchdog.timeout / MISSED)


def main() -> None:
    """Run until SIGINT or SIGTERM; the last thing that agents hear is to stand still."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # ROS's own would end all topics first
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    node = PolicyNode()
    threading.Thread(target=node.watch, daemon=True).start()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        node.get_logger().info("the node was asked to end")
    finally:
        node.halt()
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
