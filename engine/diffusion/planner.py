"""The plan that entering frames follow: recomputed when the settings that it depends on change, never in between."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from engine.diffusion.coefficients import Coefficients, LookSeeds
from engine.diffusion.noise_walk import NoiseWalk
from engine.diffusion.schedule import Step, plan_steps
from engine.diffusion.slots import Plan
from engine.models import Model
from engine.runtime.uploads import UploadMemo
from engine.shared.parameter import InvalidValue
from engine.shared.settings import DiffusionSettings, LookSettings, NoiseWalkSettings


class Planner:
    """Steps and noises for one model at one working size.

    ``steps`` are those of the frames that enter next, ``plan`` is their plan. On a GPU its noises are uploaded when it
    is first read, or before, with the frames of a tick that stages ``values``: it ``is_lazy``.
    """

    steps: tuple[Step, ...]

    def __init__(self, model: Model, width: int, height: int, uploads: UploadMemo | None = None) -> None:
        self.coefficients = Coefficients(model, width, height, uploads)
        self._noise_schedule, self._tokens = model.noise_schedule, model.token_count(width, height)
        self.is_lazy = model.device.type != "cpu"
        self._noise_walk = NoiseWalk(self.coefficients)
        self._key: tuple[object, ...] = ()
        self._looks: tuple[LookSeeds, ...] = ()
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the frames that enter next."""
        if self._plan is None:
            self._plan = Plan(self.steps, self.coefficients.mixed_noises(self._looks, len(self.steps)))
        return self._plan

    def update(self, settings: DiffusionSettings, looks: Sequence[tuple[LookSettings, float]]) -> None:
        """Compute a new plan where the settings ask for one.

        Raises InvalidValue where an explicit schedule does not suit the model: the steps then stay, the noises follow.
        """
        strength = 1.0 if settings.text_mode else settings.strength
        schedule = (settings.steps, strength, settings.schedule, self._tokens, settings.eta)
        seeds = tuple((look.seeds, share) for look, share in looks)
        if (schedule, seeds) == self._key:
            return
        self._key = ()  # until there is a plan: another error must not pass for one
        try:
            steps = plan_steps(self._noise_schedule, *schedule)
        except InvalidValue:
            self._replace(self.steps, seeds)
            self._key = (schedule, seeds)
            raise
        self._replace(steps, seeds)
        self._key = (schedule, seeds)

    def walk(self, settings: NoiseWalkSettings, captured_at: float) -> None:
        """Move the noise on to where its walk is at ``captured_at``, in seconds."""
        noises = self._noise_walk.noises(settings, captured_at, len(self.steps))
        if noises is not None:
            self._plan = Plan(self.steps, noises)

    def values(self, settings: NoiseWalkSettings, captured_at: float) -> dict[Hashable, Callable[[], Tensor]]:
        """Return what ``plan`` reads on the device after a walk to ``captured_at``."""
        walked = self._noise_walk.values(settings, captured_at, len(self.steps))
        if walked or self._plan is not None:
            return walked
        return self.coefficients.noise_values(self._looks, len(self.steps))

    def _replace(self, steps: tuple[Step, ...], looks: tuple[LookSeeds, ...]) -> None:
        if not self.is_lazy:
            self._plan = Plan(steps, self.coefficients.mixed_noises(looks, len(steps)))
        else:
            self._plan = None
        self.steps, self._looks = steps, looks
