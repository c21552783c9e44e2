"""The plan that entering frames follow: recomputed when the settings that it depends on change, never in between."""

from __future__ import annotations

from collections.abc import Sequence

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.noise_walk import NoiseWalk
from engine.diffusion.schedule import plan_steps
from engine.diffusion.slots import Plan
from engine.models import Model
from engine.shared.parameter import InvalidValue
from engine.shared.settings import DiffusionSettings, LookSettings, NoiseWalkSettings


class Planner:
    """Steps and noises for one model at one working size. ``plan`` is that of the frames that enter next."""

    plan: Plan

    def __init__(self, model: Model, width: int, height: int) -> None:
        self.coefficients = Coefficients(model, width, height)
        self._noise_schedule, self._tokens = model.noise_schedule, model.token_count(width, height)
        self._noise_walk = NoiseWalk(self.coefficients)
        self._key: tuple[object, ...] = ()

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
            self.plan = Plan(self.plan.steps, self.coefficients.mixed_noises(seeds, len(self.plan.steps)))
            self._key = (schedule, seeds)
            raise
        self.plan = Plan(steps, self.coefficients.mixed_noises(seeds, len(steps)))
        self._key = (schedule, seeds)

    def walk(self, settings: NoiseWalkSettings, captured_at: float) -> None:
        """Move the noise on to where its walk is at ``captured_at``, in seconds."""
        noises = self._noise_walk.noises(settings, captured_at, len(self.plan.steps))
        if noises is not None:
            self.plan = Plan(self.plan.steps, noises)
