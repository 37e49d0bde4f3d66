"""How channels are chosen and weights fitted: the defaults are what does best."""

from __future__ import annotations

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.section import Section, flag, option, with_default
from onnxprune.cli.options.shared import ALLOW_LINKS
from onnxprune.cli.values import Choice
from onnxprune.config import COEFFICIENTS, METRICS, RECOVER
from onnxprune.methods import METHODS, REFITS

EXPERTS = Section(
    "Experts",
    option(
        "--method",
        type=Choice(list(METHODS)),
        **with_default(DEFAULTS.method),
        help="How channels are selected: by block OBS; by greedy imitation of each layer's output (local), of the "
        "network's (global), or of the better of both (combined); by greedy forward selection towards the former (gfs) "
        "or the latter (gfs-outputs); by Taylor score, magnitude, or at random.",
    ),
    option(
        "--metric",
        type=Choice(METRICS),
        **with_default(DEFAULTS.metric),
        help="How --method global, combined and gfs-outputs measure the network's outputs: to second order in the "
        "channels (gates) or in each layer's outputs (kronecker), or by running it for the best few candidates of each "
        "step (exact; slow).",
    ),
    option(
        "--coefficients",
        type=Choice(COEFFICIENTS),
        **with_default(DEFAULTS.coefficients),
        help="What the scales of --method local, global and combined add up to: whatever serves best, up to the number "
        "of channels (free), or that number at every step, by the letter of the paper (convex).",
    ),
    option(
        "--probes",
        type=int,
        **with_default(DEFAULTS.probes),
        help="Random projections of the outputs that are differentiated for every sample.",
    ),
    option(
        "--refit",
        type=Choice(list(REFITS)),
        **with_default(DEFAULTS.refit),
        help="How the remaining weights are adapted.",
    ),
    option(
        "--recover",
        type=int,
        metavar="EPOCHS",
        show_default=f"{RECOVER} after lockstep, else 0",
        help="Passes over the data in which the refitted model learns from the original, without labels; the state "
        "that does best on held-out samples stays. Takes several times as long as the rest.",
    ),
    option("--seed", type=int, **with_default(DEFAULTS.seed), help="Of every random choice."),
    flag(
        "--force",
        "Write the model even where a check failed, that of --max-error excepted; replay a plan with other data.",
    ),
    ALLOW_LINKS,
)
