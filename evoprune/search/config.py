"""What a search is told: sizes, rates, budgets, and which rungs of the fidelity ladder it uses for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evoprune.search.initialisation import InitialShares
from search_spaces.errors import OptionError, check_rules


@dataclass(frozen=True)
class LadderPlan:
    """Which rung does what. Numbers of different rungs are never compared.

    Attributes:
        judge: The rung by which individuals survive.
        screen: A cheap rung that sees ``screen_factor`` times as many offspring as are judged, and picks the best; None
            judges all offspring.
        halving: Rungs between ``screen`` and ``judge``, cheapest first; each passes on the best of what it sees, such
            that the numbers fall in equal proportions from ``screen_factor`` times the judged offspring to these. With
            rungs that double their images this is successive halving (Jamieson 2016, Non-stochastic best arm
            identification and hyperparameter optimization).
        elite: A dear rung for the best ``n_elites`` of every generation, which decides the winner; None leaves that to
            ``judge``.
        screen_factor: Offspring made per offspring judged.
        n_elites: Individuals per generation that the elite rung sees.
    """

    judge: str
    screen: str | None = None
    elite: str | None = None
    screen_factor: int = 4
    n_elites: int = 4
    halving: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: A rung has two roles, or a number is not positive.
        """
        rungs = self.rungs
        if len(set(rungs)) != len(rungs):
            raise OptionError(f"every rung of a ladder plan has one role, but got {rungs}; leave a role out instead")
        if self.screen_factor < 1 or self.n_elites < 1:
            raise OptionError(
                "`screen_factor` and `n_elites` must be at least 1, but got "
                f"{self.screen_factor} and {self.n_elites}; leave the rung out instead"
            )

    @property
    def screens(self) -> tuple[str, ...]:
        """The rungs that offspring pass before they are judged, in order."""
        return ((self.screen,) if self.screen is not None else ()) + tuple(self.halving)

    @property
    def rungs(self) -> tuple[str, ...]:
        """Every rung that is used, cheapest first."""
        return (*self.screens, self.judge, *((self.elite,) if self.elite is not None else ()))

    def n_passed(self, screen: str, n_judged: int) -> int:
        """Return how many offspring ``screen`` passes on, where ``n_judged`` are judged in the end."""
        n_left = len(self.screens) - 1 - self.screens.index(screen)
        return round(n_judged * self.screen_factor ** (n_left / len(self.screens)))


def _equal_parts(*names: str) -> Mapping[str, float]:
    return dict.fromkeys(names, 1.0)


@dataclass(frozen=True)
class SearchConfig:
    """How a global search runs.

    Attributes:
        budgets: Shares in (0, 1] of the dense costs by metric, a name of the space's ``costs``; all hold at once. None
            or absent where there is none.
        ladder: Rungs and their roles.
        population_size: Survivors per generation (mu).
        n_offspring: Offspring judged per generation (lambda); ``population_size`` by default.
        n_generations: Generations after the initial population.
        p_crossover: Probability that an offspring has two parents.
        mutations: Relative frequency of the operators ``mutate_<name>``.
        crossovers: Relative frequency of the operators ``mate_<name>``.
        mutation_rates: Least and largest share of genes to change. Every individual carries its own rate, drawn between
            them and inherited with a log-normal factor, so that rates which lead to survivors spread.
        random_share: Share of offspring that no prior guides, so that no criterion can fix the result.
        prior_temperature: Positive; large values make priors weak, small ones strict.
        p_guided: Share of guided offspring whose repair follows their prior too; the others are repaired at random.
        surrogate_factor: Offspring made per offspring that is kept by a linear model of the genomes judged so far; 1 is
            without a model.
        n_best: Size of the halls of fame.
        min_diversity: Immigrants come when diversity falls below this share of its initial value.
        immigrant_share: Share of offspring that immigrants replace then.
        initial: Composition of the initial population.
        adapt_operators: Whether operators whose children survive are used more often.
        restart: Whether a fresh population replaces one whose diversity is gone; immigrants come otherwise. The halls
            of fame survive.
        width_generations: So many generations, and the initial population, evolve widths alone: of every group the
            genes that the first prior wants most are kept. Then all bits are free.
    """

    budgets: Mapping[str, float | None]
    ladder: LadderPlan
    population_size: int = 24
    n_offspring: int | None = None
    n_generations: int = 20
    p_crossover: float = 0.5
    mutations: Mapping[str, float] = field(default_factory=lambda: _equal_parts("flip", "swap", "drop", "width"))
    crossovers: Mapping[str, float] = field(default_factory=lambda: _equal_parts("uniform", "groups", "two_point"))
    mutation_rates: tuple[float, float] = (0.002, 0.1)
    random_share: float = 0.2
    prior_temperature: float = 1.0
    p_guided: float = 0.5
    surrogate_factor: int = 16
    n_best: int = 10
    min_diversity: float = 0.05
    immigrant_share: float = 0.2
    initial: InitialShares = field(default_factory=InitialShares)
    adapt_operators: bool = True
    restart: bool = False
    width_generations: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: A value is out of its range.
        """
        low, high = self.mutation_rates
        check_rules(
            [
                ("population_size >= 2", self.population_size >= 2, self.population_size),
                ("n_offspring >= 1", self.n_offspring is None or self.n_offspring >= 1, self.n_offspring),
                ("n_generations >= 0", self.n_generations >= 0, self.n_generations),
                ("0 <= p_crossover <= 1", 0 <= self.p_crossover <= 1, self.p_crossover),
                ("0 < mutation_rates[0] <= mutation_rates[1] <= 1", 0 < low <= high <= 1, self.mutation_rates),
                ("0 <= random_share <= 1", 0 <= self.random_share <= 1, self.random_share),
                ("0 < prior_temperature < inf", 0 < self.prior_temperature < float("inf"), self.prior_temperature),
                ("0 <= p_guided <= 1", 0 <= self.p_guided <= 1, self.p_guided),
                ("surrogate_factor >= 1", self.surrogate_factor >= 1, self.surrogate_factor),
                ("n_best >= 1", self.n_best >= 1, self.n_best),
                ("0 <= min_diversity <= 1", 0 <= self.min_diversity <= 1, self.min_diversity),
                ("0 <= immigrant_share <= 1", 0 <= self.immigrant_share <= 1, self.immigrant_share),
                ("width_generations >= 0", self.width_generations >= 0, self.width_generations),
                ("mutations > 0", _are_weights(self.mutations), dict(self.mutations)),
                ("crossovers > 0", _are_weights(self.crossovers), dict(self.crossovers)),
            ],
            purpose="a search",
        )

    @property
    def n_judged_offspring(self) -> int:
        """Offspring judged per generation."""
        return self.population_size if self.n_offspring is None else self.n_offspring

    def n_bred(self, n_immigrants: int) -> int:
        """Return how many offspring are judged beside ``n_immigrants``."""
        return max(self.n_judged_offspring - n_immigrants, 0)

    def n_passed(self, screen: str, n_immigrants: int) -> int:
        """Return how many offspring pass the rung ``screen``, where ``n_immigrants`` are judged with them."""
        return self.ladder.n_passed(screen, self.n_bred(n_immigrants))


def _are_weights(frequencies: Mapping[str, float]) -> bool:
    return bool(frequencies) and all(0 < value < float("inf") for value in frequencies.values())
