# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it calibrated?
#
# A trained guide answers for any data set in a moment. A wrong answer comes as fast as a right one
# and looks the same. So before the first real data set, ask the guide about data whose truth is
# known: the model can simulate as many as you like, latents included, and the guide is cheap to
# ask. This is one call, `check_calibration`.
#
# Then we lie. Four other guides are made of the trained one, each wrong in a known way, and every
# check has to say which. One of the lies passes the most popular checks of all.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.stats import norm

from amortize_diagnostics import CalibrationRun, ecdf_test
from numpyro_amortize import NPE, AmortizedGuide, fit, simulate

# %% [markdown]
# ## Write the model and train a guide
#
# A parcel is put on a bad scale six times. How heavy is it, and how bad is the scale?


# %%
def weighing(y=None):
    weight = numpyro.sample("weight", dist.Normal(10.0, 2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("tries", 6):
        numpyro.sample("y", dist.Normal(weight, noise), obs=y)


# %%
guide = AmortizedGuide(weighing, observed="y")
amortized = fit(
    weighing,
    guide,
    NPE(256),
    num_steps=5000,
    learning_rate=3e-3,
    progress_bar=False,
)
print(amortized.history)

# %% [markdown]
# ## Ask about data whose truth is known
#
# 300 data sets are simulated, each with its own weight and noise, and the guide gives 999 draws
# for each. If the guide is exact, truth and draws come from the same distribution, so that nothing
# can tell the truth from a draw:
#
# - its **rank** among the draws is uniform (simulation-based calibration), for each latent, and for
#   any other number, such as the log likelihood of the data;
# - a **region** that the guide gives 90 % holds it in 90 % of the data sets;
# - a **ball** around any point does, too, if the point does not know the truth (TARP).
#
# *Contraction* says how much the data have told: 0 if the posterior is as wide as the prior, 1 if
# it is a point. P-values are adjusted for the number of tests: an exact guide gets any complaint in
# at most 5 % of such tables.

# %%
calibration = amortized.check_calibration()
print(calibration)

# %% [markdown]
# ## Four liars
#
# Now the same by hand, which works for draws from anywhere, Stan and PyMC included. Simulate, draw
# from the guide at all data sets at once, and keep everything as arrays. Each liar takes the
# guide's draws and spoils them: too narrow, too wide, moved to one side; or it forgets the data and
# returns draws from the prior.

# %%
NUM_DATASETS, NUM_DRAWS = 300, 499
joint = simulate(weighing, 1300, rng_key=jax.random.key(3))
weight, noise, y = (np.asarray(joint[name]) for name in ("weight", "noise", "y"))
truths = np.stack([weight, np.log(noise)], axis=-1)[:NUM_DATASETS]
past = np.stack([weight, np.log(noise)], axis=-1)[NUM_DATASETS:]
data, past_data = y[:NUM_DATASETS], y[NUM_DATASETS:]

posterior = amortized.at_each(observations={"y": jnp.asarray(data)})
answer = posterior.sample(NUM_DRAWS)
draws = np.stack([np.asarray(answer["weight"]), np.log(np.asarray(answer["noise"]))], axis=-1)
mean, sd = draws.mean(0), draws.std(0)

rng, size = np.random.default_rng(0), draws.shape[:-1]
guides = {
    "trained": draws,
    "too narrow": mean + 0.7 * (draws - mean),
    "too wide": mean + 1.5 * (draws - mean),
    "moved by 0.3 sd": draws + 0.3 * sd,
    "prior": np.stack([rng.normal(10.0, 2.0, size), np.log(np.abs(rng.normal(size=size)))], -1),
}


# %% [markdown]
# `CalibrationRun` is what `check_calibration` uses inside. It takes the truths, other simulations
# to learn scales from, and draws in as many blocks as you like.


# %%
def log_likelihood(latents):
    weight, log_noise = latents[..., :1], latents[..., 1:]
    return norm.logpdf(data, weight, np.exp(log_noise)).sum(-1)


def sites(latents):
    return {"weight": latents[..., 0], "log noise": latents[..., 1]}


def check(draws):
    run = CalibrationRun(
        sites(truths),
        np.random.default_rng(1),
        densities={"log_likelihood": log_likelihood(truths)},
        past=sites(past),
        data=data,
        past_data=past_data,
    )
    run.add(sites(draws), densities={"log_likelihood": log_likelihood(draws)})
    return run.result()


results = {name: check(draws) for name, draws in guides.items()}
for name, result in results.items():
    print(f"{name}: {result.verdict}")

# %% [markdown]
# ## Look at the ranks
#
# Each panel shows how far the distribution of the ranks is from the uniform one. The grey band
# holds all of an exact guide's curve in 99 % of cases. *Above and then below*: the truth is too
# often at the ends, the guide is too narrow. *Below and then above*: too wide. *On one side*:
# biased.

# %%
figure, panels = plt.subplots(
    2, 5, figsize=(11.0, 4.6), layout="constrained", sharex=True, sharey="row"
)
rows = {"weight": "rank of the weight", "log_likelihood": "rank of the log likelihood"}
for column, (name, result) in enumerate(results.items()):
    for row, quantity in enumerate(rows):
        test = ecdf_test(result.pit[quantity], prob=0.99)
        panel = panels[row, column]
        panel.fill_between(
            test.points, test.lower, test.upper, color="0.88", step="mid", linewidth=0
        )
        colour = "#1f77b4" if test.is_inside else "#d95f02"
        panel.plot(test.points, test.difference, color=colour, linewidth=1.5)
        panel.axhline(0.0, color="0.6", linewidth=0.8)
        words = "inside" if test.is_inside else "outside"
        panel.text(
            0.97, 0.9, words, transform=panel.transAxes, ha="right", color=colour, fontsize=9
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, column].set_title(name, loc="left", fontsize=11)
    panels[1, column].set_xlabel("rank / number of draws")
panels[0, 0].set_ylim(-0.25, 0.25)
for row, label in enumerate(rows.values()):
    panels[row, 0].set_ylabel(f"{label}\nECDF - uniform", fontsize=9)

# %% [markdown]
# The last column is the reason for the lower row. The prior is *perfectly* calibrated: over all
# data sets truths do come from it. Ranks of latents cannot see that it ignores the data. The log
# likelihood can, because it reads them.
#
# ## Which check sees which lie
#
# One column for each guide; the numbers are p-values, adjusted for all tests of a guide. Small ones
# are in the sight of that check.


# %%
def p_values(result):
    tested = [row for row in result.rows if not np.isnan(row.p_value)]
    return pd.Series({f"{row.site}: {row.check}": row.p_value for row in tested})


table = pd.DataFrame({name: p_values(result) for name, result in results.items()})
table.map(lambda p: f"{p:.2f}" if p > 0.005 else "< 0.005")

# %% [markdown]
# No check sees every lie. That is why there is a table, and one verdict for all of it.
#
# ## A guide that is not done
#
# The lies above are made up. This one is not: the same guide after too few steps. The table names
# what is wrong, and training longer is the cure.

# %%
early = fit(
    weighing,
    AmortizedGuide(weighing, observed="y"),
    NPE(256),
    num_steps=40,
    learning_rate=3e-3,
    progress_bar=False,
)
unfinished = early.check_calibration(num_draws=299)
print(unfinished)

# %% [markdown]
# ## Errors that cancel
#
# All of this is an average over data sets. A guide that is too high at some data and too low at
# others may pass. With `num_local=` a classifier sees other simulations, learns to tell draws from
# truths *given the data*, as the guide's own networks read them, and adds one row to the table.

# %%
local = {
    name: one.check_calibration(num_draws=299, num_local=2000)
    for name, one in {"trained": amortized, "not done": early}.items()
}
given_the_data = {
    name: next(row for row in found.rows if row.check == "local (L-C2ST)")
    for name, found in local.items()
}
for name, row in given_the_data.items():
    print(f"{name}: {row.value}, p = {row.p_value:.2g}: {row.verdict}")

# %% [markdown]
# ## Take it to ArviZ
#
# `to_datatree` gives the ranks in a group named `prior_sbc`, which is where ArviZ's own plots look
# for them; `plot` calls `arviz_plots.plot_ecdf_pit` for you.

# %%
tree = calibration.to_datatree()
print(dict(tree["prior_sbc"].sizes), list(tree["prior_sbc"].data_vars))
plots = calibration.plot(["weight", "noise", "log_likelihood"])

# %% [markdown]
# ## What the checks say
#
# The last cell claims what this page has shown: the trained guide passes, each liar is called by
# its name, the prior passes ranks of the latents and fails those of the likelihood, and the
# unfinished guide is not let through, by the classifier neither. A pass speaks for the guide on
# average over simulated data. For one real data set, importance weights have the word: that is the
# next tutorial.

# %% tags=["claims"]
assert calibration.is_accepted
assert results["trained"].is_accepted
assert "too narrow" in results["too narrow"].verdict
assert "too wide" in results["too wide"].verdict
assert "too high" in results["moved by 0.3 sd"].verdict
assert "the guide ignores the data" in results["prior"].verdict
assert table["prior"]["weight: ranks"] > 0.05
assert table["prior"]["log likelihood: ranks"] < 1e-6
assert not unfinished.is_accepted
assert given_the_data["trained"].p_value > 0.05 > given_the_data["not done"].p_value
