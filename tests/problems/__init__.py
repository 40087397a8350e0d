"""Models with a posterior in closed form, in NumPy: the truth that guides are measured against.

Each problem is a frozen dataclass with

- `num_latents`: number of scalar latents, the divisor of "nats per latent dimension";
- `sample_joint(rng, num) -> (latents, observations)`: joint draws by site, each of shape
  `(num, *plates, *event)`;
- `log_posterior(latents, observations) -> (num,)`: the exact normalised log density of row i of
  the latents given row i of the observations, in the constrained space, in nats;
- `log_evidence(observations) -> (num,)`: `log p(x)` in nats;
- `sample_posterior(rng, observations) -> latents`: one exact draw for each row.
"""

from tests.problems.autoregression import Autoregression
from tests.problems.beta_binomial import BetaBinomial
from tests.problems.binary_digits import BinaryDigits
from tests.problems.blob_image import BlobImage
from tests.problems.compass import Compass
from tests.problems.conjugate_normal import ConjugateNormal
from tests.problems.contaminated_normal import ContaminatedNormal
from tests.problems.crossed_effects import CrossedEffects
from tests.problems.digits_components import DigitsComponents
from tests.problems.discrete_joints import (
    MixtureAssignments,
    Outlier,
    PoissonCount,
    Regimes,
    Switches,
)
from tests.problems.elliptical import Elliptical
from tests.problems.grouped_normal import GroupedNormal
from tests.problems.hierarchical_normal import HierarchicalNormal
from tests.problems.line import Line
from tests.problems.linear_gaussian import LinearGaussian
from tests.problems.local_level import LocalLevel
from tests.problems.normal_unknown_scale import NormalUnknownScale
from tests.problems.parabola import Parabola
from tests.problems.ramp import Ramp
from tests.problems.slopes import Slopes
from tests.problems.two_mode_sign import TwoModeSign

PROBLEMS = {
    "autoregression": Autoregression(),
    "beta_binomial": BetaBinomial(),
    "blob_image": BlobImage(),
    "compass": Compass(),
    "conjugate_normal": ConjugateNormal(),
    "contaminated_normal": ContaminatedNormal(),
    "crossed_effects": CrossedEffects(),
    "elliptical": Elliptical(),
    "grouped_normal": GroupedNormal(),
    "hierarchical_normal": HierarchicalNormal(),
    "line": Line(),
    "linear_gaussian_2": LinearGaussian(dim=2),
    "linear_gaussian_10": LinearGaussian(dim=10),
    "local_level": LocalLevel(),
    "mixture_assignments": MixtureAssignments(),
    "normal_unknown_scale": NormalUnknownScale(),
    "outlier": Outlier(),
    "parabola": Parabola(),
    "poisson_count": PoissonCount(),
    "ramp": Ramp(),
    "regimes": Regimes(),
    "slopes": Slopes(),
    "switches": Switches(),
    "two_mode_sign": TwoModeSign(),
}

__all__ = [
    "PROBLEMS",
    "Autoregression",
    "BetaBinomial",
    "BinaryDigits",
    "BlobImage",
    "Compass",
    "ConjugateNormal",
    "ContaminatedNormal",
    "CrossedEffects",
    "DigitsComponents",
    "Elliptical",
    "GroupedNormal",
    "HierarchicalNormal",
    "Line",
    "LinearGaussian",
    "LocalLevel",
    "MixtureAssignments",
    "NormalUnknownScale",
    "Outlier",
    "Parabola",
    "PoissonCount",
    "Ramp",
    "Regimes",
    "Slopes",
    "Switches",
    "TwoModeSign",
]
