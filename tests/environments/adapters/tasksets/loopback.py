"""A harness of the library that asks its model server for one reply a turn, in this process and without tools."""

import httpx
import verifiers.v1 as vf

__all__ = ["Loopback"]


class LoopbackConfig(vf.HarnessConfig):
    pass


class Loopback(vf.Harness[LoopbackConfig]):
    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        system, prompt = self.resolve_prompt(data)
        said = (
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [{"role": message.role, "content": message.content} for message in prompt]
        )
        messages = ([{"role": "system", "content": system}] if system else []) + said
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(
                f"{endpoint}/chat/completions",
                headers={"Authorization": f"Bearer {secret}"},
                json={"model": ctx.model, "messages": messages},
            )
        ok = answer.status_code == 200
        return vf.ProgramResult(exit_code=0 if ok else 1, stdout="", stderr="" if ok else answer.text)
