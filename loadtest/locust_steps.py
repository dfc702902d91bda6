"""Users in steps, to find where latency begins to climb: `locust -f loadtest/locustfile.py,loadtest/locust_steps.py …`.

Doubles the number of users every `--step-s` seconds from `--step-from` to `--step-to`, and ends.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener
def _arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("users in steps")
    group.add_argument("--step-from", type=int, default=1, help="users of the first step (default: 1)")
    group.add_argument("--step-to", type=int, default=128, help="users of the last step (default: 128)")
    group.add_argument("--step-s", type=float, default=30.0, help="seconds of a step (default: 30)")


def users_at(run_s: float, first: int, last: int, step_s: float) -> int | None:
    """How many users there are `run_s` seconds after the start; None: the run is over."""
    users = first << int(run_s // step_s)
    return users if users <= last else None


class Steps(LoadTestShape):
    """Doubles the users, step by step."""

    def tick(self) -> tuple[int, float] | None:
        """Users and how many of them to start a second; None ends the run."""
        given: Any = self.runner.environment.parsed_options if self.runner else None
        if given is None:
            return None
        run_s: float = self.get_run_time()
        users = users_at(run_s, given.step_from, given.step_to, given.step_s)
        return None if users is None else (users, float(users))
