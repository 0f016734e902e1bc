"""Going on with a generation of which another attempt has made the first tokens, in front of vLLM's engine.

What vLLM's serving layer gets is what it would have got in an unbroken run: outputs for the tokens that are there, then
outputs for new ones. To **continue**, the old tokens are rendered here and the engine generates behind them, with the
prompt made longer and the limits made smaller. The engine then gives token ids only: text, stop strings and what is
held back for them come from one incremental detokenizer of vLLM's, here, that has seen every token, so nothing can
differ at the seam. To **verify**, the engine makes everything again, and the journal compares.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.request import RequestStatus

from worker.engines.base import Journal, Policy, Resume

Outputs = AsyncGenerator[RequestOutput, None]
Generate = Callable[[Any, SamplingParams], Outputs]
"""The real engine: prompt and parameters → outputs."""

_BEYOND_THE_TOKENS = (
    *("structured_outputs", "presence_penalty", "frequency_penalty", "logprobs", "prompt_logprobs", "bad_words"),
    *("logprob_token_ids", "repetition_detection", "thinking_token_budget", "trace_decode_token_ids", "extra_args"),
)
_PROMPTS = ("token", "multimodal")
"""Of the second the media stay where they stand in the prompt, whatever tokens follow it."""
_TURN_TOKENS = 16
_GIVEN_AS_ZERO = ("seed", "logprobs", "prompt_logprobs", "thinking_token_budget")


def resumed(
    client: EngineClient, journal: Journal, resume: Resume, asked: tuple[Any, SamplingParams], generate: Generate
) -> Outputs:
    """The outputs of the whole generation. `asked`: prompt and parameters as vLLM's serving layer gave them."""
    prompt, params = asked
    if not _is_one_stream(params):
        return _impossible(journal)
    if resume.policy is Policy.CONTINUE and can_continue(client, prompt, params) and not _says_media(prompt, resume):
        return _continued(client, journal, resume.token_ids, asked, generate)
    return _verified(journal, resume, generate(prompt, params))


def can_continue(client: EngineClient, prompt: Any, params: SamplingParams) -> bool:
    """Whether a generation could go on behind its first tokens, which are all that it would be told."""
    return _is_one_stream(params) and _depends_on_tokens_alone(prompt, params) and _is_plain(client)


def _is_one_stream(params: SamplingParams) -> bool:
    return params.n == 1 and params.output_kind is RequestOutputKind.DELTA


async def _impossible(journal: Journal) -> Outputs:
    journal.diverged("it is no stream of one choice")
    return
    yield  # makes this a generator


def _depends_on_tokens_alone(prompt: Any, params: SamplingParams) -> bool:
    """Whether the next token depends on the tokens before it alone; defaults of the server count, too."""
    return (
        isinstance(prompt, dict)
        and prompt.get("type") in _PROMPTS
        and not any(getattr(params, name) for name in _BEYOND_THE_TOKENS)
        and all(getattr(params, name) is None for name in _GIVEN_AS_ZERO)
    )


def _is_plain(client: EngineClient) -> bool:
    """Whether the engine itself adds nothing: a watermark may depend on where the answer began."""
    return client.renderer.tokenizer is not None and client.vllm_config.watermark_config is None


def _says_media(prompt: Any, resume: Resume) -> bool:
    """Whether tokens that stand for media in this prompt were generated, too: they could be taken for more of them."""
    ids = prompt["prompt_token_ids"]
    stand_for = set[int]()
    for places in prompt.get("mm_placeholders", {}).values():
        for place in places:
            inside = ids[place.offset : place.offset + place.length]
            marks = [True] * place.length if place.is_embed is None else place.is_embed.tolist()
            stand_for.update(token for token, is_one in zip(inside, marks, strict=True) if is_one)
    return not stand_for.isdisjoint(resume.token_ids)


def _never_sent(client: EngineClient, prompt: Any) -> None:
    """The engine does not get this prompt. Its front has noted the media as sent, and would not send them again."""
    cache = client.renderer.mm_processor_cache
    for hashes in prompt.get("mm_hashes", {}).values():
        for one in hashes if cache is not None else ():
            cache.invalidate(one)


class _Text:
    """Tokens → text and end, as vLLM's output processor makes them."""

    def __init__(self, client: EngineClient, prompt: Any, params: SamplingParams) -> None:
        self._prompt_ids: list[int] = prompt["prompt_token_ids"]
        self._params = _with_defaults(client, len(self._prompt_ids), params)
        self._longest = client.model_config.max_model_len
        request: Any = SimpleNamespace(
            request_id="resumed",
            sampling_params=self._params,
            prompt_token_ids=self._prompt_ids,
            prompt_embeds=None,
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(client.renderer.tokenizer, request)

    def add(self, token_ids: Sequence[int], end: tuple[str | None, Any]) -> CompletionOutput:
        """The output of these tokens. `end`: finish reason and stop reason that the engine found at the last of them.

        A stop string may end the generation earlier; later tokens are then left out.
        """
        finish_reason, stop_reason = end
        kept = []
        for position, token_id in enumerate(token_ids):
            kept.append(token_id)
            last = position == len(token_ids) - 1
            stop_string = self._detokenizer.update([token_id], last and finish_reason == "stop")
            if stop_string:
                finish_reason, stop_reason = "stop", stop_string
                break
        text = self._detokenizer.get_next_output_text(finish_reason is not None, delta=True)
        return CompletionOutput(0, text, kept, None, None, finish_reason=finish_reason, stop_reason=stop_reason)

    def end_at(self, token_ids: list[int]) -> tuple[str | None, Any]:
        """Whether the engine ends a generation at the last of these tokens: finish reason and stop reason."""
        request: Any = SimpleNamespace(
            pooling_params=None,
            sampling_params=self._params,
            output_token_ids=token_ids,
            num_output_tokens=len(token_ids),
            num_tokens=len(self._prompt_ids) + len(token_ids),
            max_tokens=self._params.max_tokens,
            status=RequestStatus.RUNNING,
            stop_reason=None,
        )
        if not check_stop(request, self._longest):
            return None, None
        return str(RequestStatus.get_finished_reason(request.status)), request.stop_reason


def _with_defaults(client: EngineClient, prompt_tokens: int, params: SamplingParams) -> SamplingParams:
    """A copy of the parameters with what vLLM's input processor fills in."""
    full = copy.deepcopy(params)
    if full.max_tokens is None:
        full.max_tokens = client.model_config.max_model_len - prompt_tokens
    full.update_from_generation_config(
        client.input_processor.generation_config_fields, client.renderer.get_eos_token_id()
    )
    return full


async def _continued(
    client: EngineClient, journal: Journal, there: list[int], asked: tuple[Any, SamplingParams], generate: Generate
) -> Outputs:
    prompt, params = asked
    text = _Text(client, prompt, params)
    for count in range(1, len(there) + 1):
        end = text.end_at(there) if count == len(there) else (None, None)
        choice = text.add(there[count - 1 : count], end)
        if choice.finished():
            _never_sent(client, prompt)
            if count < len(there):
                journal.diverged("it ended before its last token")
                return
            journal.replayed()
        yield _output(prompt, choice)
        if choice.finished():
            return
        if count % _TURN_TOKENS == 0:
            await asyncio.sleep(0)  # the other streams of this worker must not wait for a long replay
    journal.replayed()
    # closed as soon as a stop string ends the answer: the engine would go on
    async with aclosing(generate(_longer(prompt, there), _shorter(params, len(there)))) as outputs:
        async for output in outputs:
            (made,) = output.outputs
            choice = text.add(made.token_ids, (made.finish_reason, made.stop_reason))
            choice.spec_decode_metrics = made.spec_decode_metrics
            output.prompt_token_ids = prompt["prompt_token_ids"]
            output.outputs = [choice]
            output.finished = choice.finished()
            yield output
            if output.finished:
                return


def _output(prompt: Any, choice: CompletionOutput) -> RequestOutput:
    return RequestOutput(
        "resumed",
        prompt.get("prompt"),
        prompt["prompt_token_ids"],
        None,
        [choice],
        finished=choice.finished(),
        num_cached_tokens=0,
    )


def _longer(prompt: Any, there: list[int]) -> Any:
    """The prompt with the tokens behind it that have been generated."""
    longer = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *there]}
    longer.pop("prompt_token_offsets", None)
    return longer


def _shorter(params: SamplingParams, tokens: int) -> SamplingParams:
    """The parameters for the rest, of which the engine gives token ids only."""
    rest = copy.deepcopy(params)
    rest.stop = []
    rest.output_text_buffer_length = 0
    rest.detokenize = False
    rest.max_tokens = None if params.max_tokens is None else params.max_tokens - tokens
    rest.min_tokens = max(0, params.min_tokens - tokens)
    return rest


async def _verified(journal: Journal, resume: Resume, outputs: Outputs) -> Outputs:
    """The outputs of a run from scratch, cut where the old tokens end."""
    tokens, chars, replaying = len(resume.token_ids), resume.text_len, True
    async with aclosing(outputs):
        async for output in outputs:
            (choice,) = output.outputs
            made = len(choice.token_ids)
            if not replaying or made < tokens:
                tokens, chars = tokens - made, chars - len(choice.text)
                yield output
                continue
            replaying, rest = False, output
            if tokens and (made > tokens or not choice.finished()):
                yield _part(output, slice(tokens), slice(chars), last=False)
                rest = _part(output, slice(tokens, None), slice(chars, None), last=True)
            journal.replayed()
            (choice,) = rest.outputs
            if choice.token_ids or choice.text or rest.finished:
                yield rest


def _part(output: RequestOutput, tokens: slice, chars: slice, *, last: bool) -> RequestOutput:
    """A part of an output; the last part has its end."""
    (whole,) = output.outputs
    logprobs: Any = whole.logprobs
    choice = replace(
        whole,
        token_ids=list(whole.token_ids)[tokens],
        text=whole.text[chars],
        logprobs=None if logprobs is None else logprobs[tokens],
        finish_reason=whole.finish_reason if last else None,
        stop_reason=whole.stop_reason if last else None,
    )
    part = copy.copy(output)
    part.outputs, part.finished = [choice], choice.finished()
    return part
