"""What the compute thread does: jobs of the mesh, on the stages that are loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama_kernels import CacheKind

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.mesh.effects import (
    CloseJob,
    FillJob,
    ForgetJob,
    HeadJob,
    Job,
    JobResult,
    Likelihoods,
    OpenJob,
    PromptTokens,
    ScoreJob,
    StageJob,
    TokenizeJob,
)
from edgellama.model.cache import SessionCache
from edgellama.model.conversation import continued, conversation, fitting
from edgellama.model.head import Head
from edgellama.model.perplexity import negative_log_likelihoods
from edgellama.model.sampling import sample
from edgellama.model.stage import Stage
from edgellama.node.epoch_stage import EpochStage
from edgellama.node.kept_caches import KeptCaches
from edgellama.node.kernels import prove

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels import CacheLayer, HiddenRows, Kernels

    from edgellama.model.chat_template import ChatTemplate
    from edgellama.model.config import ModelConfig
    from edgellama.model.tokenizer import Tokenizer
    from edgellama.model.weights import HomeWeights, LayerWeights
    from edgellama.values import Plan, Span, Turn
    from edgellama.wire.messages import Ask


@dataclass(frozen=True)
class LoadedSpan:
    """A node's part of a model, ready to compute; ``home`` and ``tokenizer`` at home alone."""

    plan: Plan
    span: Span
    config: ModelConfig
    layers: tuple[LayerWeights, ...]
    home: HomeWeights | None
    tokenizer: Tokenizer | None
    template: ChatTemplate | None = None  # where the model has one


class Engine:
    """The stages of one node, by epoch; used by the compute thread alone."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._stages: dict[int, EpochStage] = {}
        self._heads: dict[int, Head] = {}
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._kept = KeptCaches()

    @property
    def backend(self) -> str:
        """The name of the kernels in use."""
        return self._kernels.name

    @property
    def kernels(self) -> Kernels:
        """The kernels in use."""
        return self._kernels

    def prove(self) -> str:
        """Return the digest of the kernels in this thread; EdgellamaError where it is wrong."""
        return prove(self._kernels)

    def use(self, kernels: Kernels) -> None:
        """Prove other kernels and compute with them from now on, also in open sessions."""
        prove(kernels)
        for stage in self._stages.values():
            stage.use(kernels)
        for head in self._heads.values():
            head.use(kernels)
        self._kernels.close()
        self._kernels = kernels

    def close(self) -> None:
        """End the kernels' threads."""
        self._kernels.close()

    def install(self, loaded: LoadedSpan) -> None:
        """Make ready to compute under the plan's epoch."""
        plan, span = loaded.plan, loaded.span
        if span.layers:

            def build(part: Span) -> Stage:
                layers = loaded.layers[part.first - span.first : part.past - span.first]
                return Stage(
                    *(self._kernels, loaded.config, part, layers),
                    *(plan.context, plan.sessions_max, plan.kv_kind),
                )

            def allocate() -> CacheLayer:
                return SessionCache.allocate(
                    loaded.config, 1, plan.context, CacheKind(plan.kv_kind)
                ).layers[0]

            # A plan is loaded again after another that came to nothing: its answers go on.
            self._stages.setdefault(plan.epoch, EpochStage(plan, span, build, allocate))
        if loaded.home is not None:
            self._heads[plan.epoch] = Head(self._kernels, loaded.config, loaded.home)
            self._tokenizer = loaded.tokenizer
            self._template = loaded.template

    def drop_before(self, epoch: int) -> None:
        """Free the stages of older epochs; KV caches are kept for whoever goes on."""
        for old in sorted(each for each in self._stages if each < epoch):
            self._stages.pop(old).retire(self._kept)
        for old in [each for each in self._heads if each < epoch]:
            del self._heads[old]

    def run(self, job: Job) -> JobResult | EdgellamaError:
        """Return the job's result, or the error that a person may read."""
        try:
            return self._run(job)
        except EdgellamaError as error:
            return error
        except MemoryError:
            return EdgellamaError("this device has run out of memory; offer less with --ram")

    def _run(self, job: Job) -> JobResult:
        match job:
            case StageJob():
                return self._run_stage(job)
            case HeadJob():
                logits = self._head(job.epoch).logits(job.hidden)[-1]
                return sample(logits, job.sampling, job.position, job.recent)
            case ScoreJob():
                logits = self._head(job.epoch).logits(job.hidden)
                return Likelihoods(tuple(negative_log_likelihoods(logits, job.targets).tolist()))
            case TokenizeJob():
                return self._prompt_tokens(job.ask, job.context)
            case OpenJob():
                stage = self._stages.get(job.epoch)
                if stage is None:
                    return ()  # home without layers of its own
                return stage.open(job, self._kept)
            case FillJob():
                return self._fill(job)
            case CloseJob():
                stage = self._stages.get(job.epoch)
                if stage is not None:
                    stage.close(job.session, self._kept if job.keep else None)
                return None
            case ForgetJob():
                self._kept.forget(job.key)
                return None

    def _prompt_tokens(self, ask: Ask, context: int) -> PromptTokens:
        if self._tokenizer is None:
            raise EdgellamaError("this device is not home any more; ask again")
        if ask.scored_from:
            return PromptTokens((), 0, is_templated=False)
        is_templated = self._template is not None and not ask.raw
        if ask.system and not is_templated:
            raise MisuseError("a system text needs a model with a chat template")
        # An answer that goes on has the prompt that it had, whatever the context is now.
        tokens, turns_kept = fitting(
            lambda history: self._tokens_after(ask, history),
            ask.history,
            context if not ask.tokens else sys.maxsize,
            ask.tokens_max,
        )
        return PromptTokens(tuple(tokens), turns_kept, is_templated)

    def _tokens_after(self, ask: Ask, history: Sequence[Turn]) -> list[int]:
        assert self._tokenizer is not None
        if self._template is None or ask.raw:
            return self._tokenizer.encode(continued(history, ask.prompt))
        messages = conversation(ask.system, history, ask.prompt)
        return self._template.tokens(self._tokenizer, messages, ask.today)

    def _run_stage(self, job: StageJob) -> HiddenRows:
        hidden = job.hidden if job.hidden is not None else self._head(job.epoch).embed(job.tokens)
        stage = self._stages.get(job.epoch)
        if stage is None:
            if job.hidden is None:
                return hidden  # home without layers of its own
            raise EdgellamaError("the layers of this epoch are not held here any more")
        return stage.forward(job.session, hidden, job.position, self._kept)

    def _fill(self, job: FillJob) -> HiddenRows:
        hidden = job.hidden if job.hidden is not None else self._head(job.epoch).embed(job.tokens)
        if not job.span.layers:
            return hidden
        stage = self._stages.get(job.epoch)
        if stage is None:
            raise EdgellamaError("the layers of this epoch are not held here any more")
        return stage.fill(job.session, job.span, hidden, job.position)

    def _head(self, epoch: int) -> Head:
        head = self._heads.get(epoch)
        if head is None:
            raise EdgellamaError("this device is not home any more; ask again")
        return head
