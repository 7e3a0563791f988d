"""A taskset whose environment opens the conversation itself, and whose task says when to stop."""

import verifiers.v1 as vf

__all__ = ["Countdown", "CountdownEnv"]


class CountdownData(vf.TaskData):
    start: int


class CountdownTask(vf.Task[CountdownData]):
    @vf.stop
    async def boom(self, trace: vf.Trace) -> bool:
        return "boom" in trace.last_reply


class CountdownConfig(vf.EnvConfig):
    counter: vf.AgentConfig = vf.AgentConfig()
    conversations: int = 1


class CountdownEnv(vf.Env[CountdownConfig]):
    async def run(self, task, agents):
        right = 0
        for _ in range(self.config.conversations):
            async with agents.counter.interaction(task) as interaction:
                at = task.data.start
                segment = await interaction.turn(f"Count down from {at}.")
                while not segment.terminated and at > 0:
                    at -= 1
                    right += segment.last_reply == str(at)
                    if at == 0:
                        break
                    segment = await interaction.turn([{"role": "user", "content": f"I heard {segment.last_reply}."}])
        interaction.trace.record_reward("share", right / task.data.start)

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        if trace.reward == 1:
            trace.record_reward("bonus", 2.0, 0.5)


class Countdown(vf.Taskset[CountdownTask, vf.TasksetConfig]):
    def load(self):
        for start in range(2, 30):
            yield CountdownTask(CountdownData(start=start), self.config.task)
