"""What a method is: the contract that compress, frontier, plan and the command line ask, free of torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from dcvit.errors import InputError
from dcvit.flags import flags_of
from dcvit.methods.target import Target
from dcvit.plan import Task
from dcvit.settings import DEFAULT_SAMPLES, Recovery, RunSettings

if TYPE_CHECKING:
    from dcvit.methods.run import Compressor, Run
    from dcvit.subject import Subject
    from dcvit.summary import PlanSummary


class MethodSettings(BaseModel):
    """What a method is told beside the target; a field with a `Flag` is an option of the command line.

    `method` is the name of the method that the settings are of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str

    @classmethod
    def paper(cls) -> Self:
        """The choices of the method's paper."""
        return cls.model_validate({})


S = TypeVar("S", bound=MethodSettings)


class Method(ABC, Generic[S]):
    """Finds a plan and recovers accuracy.

    Attributes:
        name: As `--method` says.
        title: In words, for reports.
        about: In a few words, for the help.
        settings: What it is told.
        recovery: How it recovers accuracy.
        samples: Images that it draws where the user does not say; None takes all.
        tasks: What its models may be for.
        trains_heads: Whether a new head can be trained along; without labels it cannot.
        no_use: Fields of the target and the run that mean nothing to it; a user who gives one is told.
        paper_target: What of a target its paper decides.
        needs_target: Whether it does nothing without one.
    """

    name: str
    title: str
    about: str
    settings: type[S]
    recovery: Recovery
    samples: int | None = DEFAULT_SAMPLES
    tasks: ClassVar[frozenset[Task]] = frozenset({"classification"})
    trains_heads: ClassVar[bool] = False
    no_use: ClassVar[frozenset[str]] = frozenset()
    paper_target: ClassVar[Mapping[str, Any]] = {}
    needs_target: ClassVar[bool] = True

    def knows(self, field: str) -> bool:
        """Whether a field of settings, of the target or of the run, by name, means something to it."""
        own = {each.name for each in flags_of(self.settings)}
        shared = {each.name for each in (*flags_of(Target), *flags_of(RunSettings))}
        return field in own or (field in shared and field not in self.no_use)

    def check_target(self, target: Target) -> None:
        """Checks, before anything is read or downloaded, that a target asks for something.

        Raises:
            InputError: If it says only how, and the method has nothing that it does by itself.
        """
        if self.needs_target and target.says_only_how:
            raise InputError(
                "nothing to do: give a target, such as --macs-reduction 0.3, --speedup 1.5, --merge or --plan"
            )

    @abstractmethod
    def summarize(self, subject: "Subject", target: Target, settings: S) -> "PlanSummary":
        """The plan in figures, without data or weights; stand-ins for what images would choose, as its note says.

        Raises:
            InputError: If the target says nothing, does not fit the model, or cannot be met.
        """

    @abstractmethod
    def compressor(self, run: "Run", settings: S) -> "Compressor":
        """Compresses the run's subject to any number of targets.

        Raises:
            InputError: If the method cannot do that with this model or without images.
        """


@dataclass(frozen=True)
class Places:
    """Where a run leaves things while it is under way.

    Attributes:
        checkpoints: A folder for the state of a long training and its log; None keeps neither.
        minutes: Between two states.
        tensorboard: A folder for TensorBoard's event files.
    """

    checkpoints: Path | None = None
    minutes: float = 10.0
    tensorboard: Path | None = None
