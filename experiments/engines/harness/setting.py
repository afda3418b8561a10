"""What every part of a command works on: the size of the images, and how long to train."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a part gets; each command adds its data.

    Attributes:
        description: a line about the data.
        image_shape: of an example.
        effort: factor of every number of training steps.
    """

    description: str
    image_shape: tuple[int, ...]
    effort: float

    @property
    def small(self) -> bool:
        """Whether the images are as small as 8x8; models and runs are then smaller too."""
        return math.prod(self.image_shape) < 200

    def steps(self, number: int) -> int:
        """The number of training steps at this effort, at least 2."""
        return max(2, round(number * self.effort))
