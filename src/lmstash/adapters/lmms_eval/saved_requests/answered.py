"""The harness's instance, as saved requests come back where it is loaded. Imports the harness."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance

from lmstash.adapters.lmms_eval.saved_requests.requests import answer_of


class AnsweredInstance(Instance):
    """An `Instance` that also says its answer, as a `Request` does."""

    @property
    def response(self) -> Any:
        """The answer (of several, their list), unfiltered if it is known; None as long as there is none."""
        return answer_of(self.resps, self.filtered_resps)

    def __eq__(self, other: object) -> bool:
        """Be equal to an instance of the harness with the same fields."""
        return isinstance(other, Instance) and vars(self) == vars(other)

    __hash__ = None
