"""What saved requests come back as, where the harness's own class is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request and what was answered to it.

    Attributes:
        arguments: What the model was asked, as the harness put it.
        response: The answer, None as long as there is none.
        task: Name of the task.
        doc_id: Number of the document.
        request_type: The model's method.
        metadata: What else the harness noted.
    """

    arguments: tuple[Any, ...] = ()
    response: Any = None
    task: str | None = None
    doc_id: int | str | None = None
    request_type: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments as a tuple, under the harness's name for them."""
        return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)


def answer_of(answers: Any, filtered: Any = None) -> Any:
    """Return the answer among an instance's: the one, or the list where it was asked repeatedly.

    Args:
        answers: As the model gave them.
        filtered: What filters made of them, by the filter's name; where there are no answers, the first of these.
    """
    if not answers:
        return next(iter(filtered.values()), None) if isinstance(filtered, Mapping) else None
    return answers[0] if len(answers) == 1 else list(answers)


class Record:
    """An object of a class that is not restored: its attributes, and the name of its class in `class_name`."""

    def __init__(self, class_name: str, attributes: Mapping[str, Any]) -> None:
        """Take them."""
        self.__dict__.update(attributes)
        self.class_name = class_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show the class's name and the attributes."""
        told = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "class_name")
        return f"<{self.class_name} {told}>"
