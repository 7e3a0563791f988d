"""A taskset of one turn each: sums, with two weighted rewards, a metric, and hooks that say when they ran."""

import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: int


class SumTask(vf.Task[SumData]):
    async def setup(self, trace, runtime):
        trace.info["hooks"] = ["setup"]

    async def finalize(self, trace, runtime):
        trace.info["hooks"].append("finalize")

    @vf.reward
    async def right(self, trace) -> float:
        assert trace.info["hooks"] == ["setup", "finalize"]
        return float(f"<answer>{self.data.answer}</answer>" in trace.last_reply)

    @vf.reward(weight=0.25)
    async def short(self, task, trace) -> float:
        return 1 / len(trace.assistant_messages[-1].content or "-")

    @vf.metric
    async def prompted(self, trace) -> float:
        return float([message.role for message in trace.messages] == ["system", "user", "assistant"])


class SumsConfig(vf.TasksetConfig):
    largest: int = 9


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        for a in range(1, self.config.largest + 1):
            for b in range(1, self.config.largest + 1):
                yield SumTask(
                    SumData(prompt=f"What is {a} + {b}?", system_prompt="Be short.", answer=a + b), self.config.task
                )
