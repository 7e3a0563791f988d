"""gymnasium's frozen lake behind OpenEnv's own server: ``python lake_server.py PORT``."""

import sys

import gymnasium
import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

MOVES = ("left", "down", "right", "up")


class LakeAction(Action):
    move: str


class LakeObservation(Observation):
    board: str


class Lake(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self.lake, self.steps = gymnasium.make("FrozenLake-v1", render_mode="ansi"), 0

    def reset(self, seed=None, episode_id=None, **options):
        self.lake.reset(seed=seed)
        self.steps = 0
        return LakeObservation(board=self.lake.render(), done=False, reward=None)

    def step(self, action, timeout_s=None, **options):
        self.steps += 1
        if action.move not in MOVES:
            return LakeObservation(board=f"There is no way {action.move}.", done=False, reward=None)
        _, reward, terminated, truncated, _ = self.lake.step(MOVES.index(action.move))
        return LakeObservation(board=self.lake.render(), done=bool(terminated or truncated), reward=float(reward))

    @property
    def state(self):
        return State(step_count=self.steps)

    def close(self):
        self.lake.close()


if __name__ == "__main__":
    app = create_app(Lake, LakeAction, LakeObservation, env_name="lake", max_concurrent_envs=4)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
