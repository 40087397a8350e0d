"""What differs between the two packages when a test calls them: keys, parameters and arrays.

`host(backend)` gives one object with the same methods for both, so that test bodies are shared.
Everything goes in and comes out as NumPy.
"""

import importlib
from contextlib import contextmanager
from functools import cache

import numpy as np


def numpy_tree(value):
    """Nested dicts of host arrays as NumPy arrays."""
    if isinstance(value, dict):
        return {name: numpy_tree(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(numpy_tree(item) for item in value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.array(np.asarray(value))  # a copy: torch updates parameters in place


def num_distinct(draws):
    """Number of different values, as a fraction of all; single precision repeats a few."""
    draws = np.asarray(draws)
    return len(np.unique(draws)) / draws.size


class NumPyroHost:
    """Calls of `numpyro_amortize`."""

    name = "numpyro"

    def __init__(self):
        self.package = importlib.import_module("numpyro_amortize")
        self.models = importlib.import_module("tests.models_numpyro")
        self.infer = importlib.import_module("numpyro.infer")
        self._jax = importlib.import_module("jax")

    def module(self, name):
        return importlib.import_module(f"numpyro_amortize.{name}")

    def array(self, value):
        """A host array in the default precision."""
        value = np.asarray(value)
        dtype = self._jax.numpy.result_type(float) if value.dtype.kind == "f" else None
        return self._jax.numpy.asarray(value, dtype)

    def arrays(self, values):
        return {name: self.array(value) for name, value in values.items()}

    def key(self, seed):
        return self._jax.random.key(seed)

    def double_precision(self):
        """A context in which everything new has 64 bits."""
        return self._jax.enable_x64(new_val=True)

    def draws(self, distribution, num, seed=0):
        """Draws of a distribution of the host."""
        return numpy_tree(distribution.sample(self.key(seed), (num,)))

    def guide(self, model, **options):
        return self.package.AmortizedGuide(model, **options)

    def fit(self, model, guide, objective, *, seed=0, **options):
        return self.package.fit(
            model, guide, objective, progress_bar=False, rng_key=self.key(seed), **options
        )

    def start_from(self, amortized):
        """Options of `fit` that go on with the same guide."""
        return {"params": amortized.params}

    def model_args(self, draw):
        """A sampler of arguments for NPE from `draw(rng)` with a NumPy generator."""

        def sampler(rng_key):
            seed = int(self._jax.random.bits(rng_key))
            return tuple(
                self.array(value) if isinstance(value, np.ndarray) else value
                for value in draw(np.random.default_rng(seed))
            )

        return sampler

    def trace_elbo(self, num_particles=1):
        return self.infer.Trace_ELBO(num_particles=num_particles)

    def simulate(self, model, num, *, seed=0, **options):
        return self.package.simulate(model, num, rng_key=self.key(seed), **options)

    def run(self, model, seed=0):
        """One run of a model: values and log densities by sample site."""
        handlers = importlib.import_module("numpyro.handlers")
        trace = handlers.trace(handlers.seed(model, self.key(seed))).get_trace()
        return {
            name: (np.asarray(site["value"]), np.asarray(site["fn"].log_prob(site["value"])))
            for name, site in trace.items()
            if site["type"] == "sample"
        }

    def truncated_prior(self, model, amortized, *args, seed=0, **options):
        return self.package.truncated_prior(
            model, amortized.guide, amortized.params, *args, rng_key=self.key(seed), **options
        )

    def simulate_truncated(self, truncated, num, seed=0):
        return truncated.simulate(num, rng_key=self.key(seed))

    def fit_sequential(self, model, guide, *args, seed=0, **options):
        return self.package.fit_sequential(
            model, guide, *args, progress_bar=False, rng_key=self.key(seed), **options
        )

    def build_density(self, spec, num_sites, event_size, context_size, seed=0, support=()):
        return spec.build(num_sites, event_size, context_size, *support, self.key(seed))

    def scrambled_density(self, density, scale=0.5):
        """The same networks with random weights."""
        rng = np.random.default_rng(0)
        arrays, treedef = self._jax.tree.flatten(density)
        moved = [leaf + self.array(scale * rng.normal(size=leaf.shape)) for leaf in arrays]
        return self._jax.tree.unflatten(treedef, moved)

    def untrained(self, model, guide, *args, **kwargs):
        """The posterior of a guide as it is initialised, without the warning."""
        guide.setup(*args, **kwargs)
        return self.package.AmortizedPosterior(model, guide, params=guide.init_params())

    def scrambled(self, model, guide, *args, scale=0.3, seed=0, **kwargs):
        """A guide with random weights: nothing about it is special, its densities are real."""
        guide.setup(*args, **kwargs)
        rng = np.random.default_rng(seed)
        params = guide.init_params()
        amortized = self.module("guides.weights").PARAMS
        params[amortized] = {
            name: value + self.array(scale * rng.normal(size=value.shape))
            for name, value in params[amortized].items()
        }
        return self.package.AmortizedPosterior(model, guide, params=params)

    def shifted(self, amortized, by):
        """The same guide with the location of its first latent moved, in prior sds or so."""
        weights = self.module("guides.weights")
        params = dict(amortized.params)
        vector = params[weights.STANDARDISATION]
        params[weights.STANDARDISATION] = vector.at[1].add(by * vector[2])
        return self.package.AmortizedPosterior(amortized.model, amortized.guide, params=params)

    def ensemble(self, members, weights=None):
        """The mixture of trained guides."""
        return self.package.AmortizedPosterior.from_members(members, weights)

    def evaluate(self, objective, amortized, *args):
        """One evaluation of a loss, without gradients."""
        params, key = dict(amortized.params), self.key(0)
        return float(objective.loss(key, params, amortized.model, amortized.guide, *args))

    def guide_draws(self, amortized, observations, num, batch_dims=0, seed=0, given=None):
        """Draws of a guide outside any handler, with the members they are from."""
        observations = self.arrays(observations)
        given = given and self.arrays(given)

        def one(key):
            draws = amortized.guide.draw(
                amortized.params,
                (),
                {},
                observations,
                batch_dims=batch_dims,
                given=given,
                rng_key=key,
            )
            return draws.values, draws.members

        return numpy_tree(self._jax.vmap(one)(self._jax.random.split(self.key(seed), num)))

    def guide_log_prob(self, amortized, latents, *args):
        return numpy_tree(amortized.guide.log_prob(amortized.params, self.arrays(latents), *args))

    def conditioned_draws(self, amortized, values, num, *args):
        """Draws of a guide as the host runs it with some of its sites at given values."""
        handlers = importlib.import_module("numpyro.handlers")
        given = {**values, **dict(amortized.params)}

        def one(key):
            run = handlers.seed(handlers.substitute(amortized.guide, data=given), key)
            return run(*args)

        return numpy_tree(self._jax.vmap(one)(self._jax.random.split(self.key(0), num)))

    def trace_of(self, amortized, names, kwargs):
        """Values and log densities of sites, as the host's own trace of a guide has them."""
        handlers = importlib.import_module("numpyro.handlers")
        run = handlers.substitute(amortized.guide, data=dict(amortized.params))
        trace = handlers.trace(handlers.seed(run, self.key(0))).get_trace(**kwargs)
        values = {name: trace[name]["value"] for name in names}
        densities = {name: trace[name]["fn"].log_prob(value) for name, value in values.items()}
        return numpy_tree(values), numpy_tree(densities)

    def site_fn(self, amortized, name, *args):
        """The distribution of a site in the host's trace of a guide."""
        handlers = importlib.import_module("numpyro.handlers")
        run = handlers.substitute(amortized.guide, data=dict(amortized.params))
        return handlers.trace(handlers.seed(run, self.key(0))).get_trace(*args)[name]["fn"]

    def decoder(self, in_dim, out_dim, seed=0, **options):
        kind = self.package.InverseLipschitzDecoder
        return kind(in_dim, out_dim, rng_key=self.key(seed), **options)

    def parameters(self, network):
        """Arrays of a network by name, `outer.weights.0`, in order."""
        paths, _ = self._jax.tree_util.tree_flatten_with_path(network)
        return {
            self._jax.tree_util.keystr(path, simple=True, separator="."): numpy_tree(leaf)
            for path, leaf in paths
        }

    def with_parameters(self, network, values):
        """The network with these arrays, in that order."""
        treedef = self._jax.tree.structure(network)
        return self._jax.tree.unflatten(treedef, [self.array(each) for each in values.values()])

    def network_gradients(self, network, inputs):
        """Gradients of the mean square of what it gives, by parameter."""

        def loss(network):
            return (network(self.array(inputs)) ** 2).mean()

        return self.parameters(self._jax.grad(loss)(network))

    def apply(self, network, inputs):
        """What a network gives, compiled, without gradients."""
        return np.asarray(self._jax.jit(network.__call__)(self.array(inputs)))

    def standardisation(self, amortized):
        """The effective constants of a guide, as one vector."""
        vector = numpy_tree(amortized.params[self.module("guides.weights").STANDARDISATION])
        return vector[1:] / vector[0]

    def weights(self, amortized):
        return numpy_tree(dict(amortized.params[self.module("guides.weights").PARAMS]))

    def site_log_probs(self, amortized, args, latents, observations, batch_dims=1):
        def score(latents, observations):
            return amortized.guide.site_log_probs(
                amortized.params, args, {}, latents, observations, batch_dims=batch_dims
            )

        return numpy_tree(self._jax.jit(score)(self.arrays(latents), self.arrays(observations)))

    def site_losses(self, amortized, latents, observations, seed=0):
        """What training at given values makes small, with one leading axis."""
        given = amortized.params, (), {}, self.arrays(latents), self.arrays(observations)
        return numpy_tree(amortized.guide.site_losses(*given, batch_dims=1, rng_key=self.key(seed)))

    def training_loss(self, distribution, value, seed=0):
        return numpy_tree(distribution.training_loss(self.array(value), self.key(seed)))

    def bank_loss(self, objective, model, amortized):
        """The loss on all simulations held out of the objective's bank."""
        return float(objective.bank_loss(self.key(0), amortized.params, model, amortized.guide))

    def sample(self, posterior, num, seed=0):
        return numpy_tree(posterior.sample(num, rng_key=self.key(seed)))

    def log_prob(self, posterior, latents):
        return numpy_tree(posterior.log_prob(self.arrays(latents)))

    def log_joint(self, posterior, latents):
        return numpy_tree(posterior.log_joint(self.arrays(latents)))

    def importance_sample(self, posterior, num, seed=0, **options):
        return posterior.importance_sample(num, rng_key=self.key(seed), **options)

    def diagnose(self, posterior, num, seed=0, **options):
        return posterior.diagnose(num, rng_key=self.key(seed), **options)

    def simulated_contexts(self, amortized, num, seed=0, **options):
        return amortized.simulated_contexts(num, rng_key=self.key(seed), **options)

    def ood_score(self, posterior, skip, num, seed=0):
        return posterior.ood_score(skip, num_samples=num, rng_key=self.key(seed))

    def sensitivity(self, posterior, radii, seed=0, **options):
        return posterior.sensitivity(radii, rng_key=self.key(seed), **options)

    def nuts(self, posterior, num, seed=0, **options):
        return posterior.nuts(num, rng_key=self.key(seed), **options)

    def space(self, posterior):
        """The coordinates in which `nuts` runs."""
        find = self.module("standard_space").find_space
        return find(posterior._conditioned, rng_key=self.key(0))

    def space_latents(self, space, points):
        """Values of latents and log determinants at points of a space."""
        return numpy_tree(self._jax.jit(self._jax.vmap(space.latents))(self.array(points)))

    def space_target(self, posterior, space, points):
        """The log density that `nuts` follows."""
        target = self.module("standard_space").log_target(posterior._conditioned, space)
        return numpy_tree(self._jax.jit(self._jax.vmap(target))(self.array(points)))

    def neutra_density(self, posterior, point, *args, **data):
        """Log joint density of the model under the host's NeuTraReparam, at one point of noise."""
        guide = posterior.auto_guide
        reparam = importlib.import_module("numpyro.infer.reparam").NeuTraReparam(guide, {})
        density = importlib.import_module("numpyro.infer.util").log_density
        given = {"auto_shared_latent": self.array(point)}
        value, _ = density(reparam.reparam(guide.model), args, data, given)
        return float(value)

    def short_chain(self, model, values, **data):
        """A few transitions of the host's own NUTS started at given values."""
        strategy = self.infer.init_to_value(values=self.arrays(values))
        kernel = self.infer.NUTS(model, init_strategy=strategy)
        chain = self.infer.MCMC(kernel, num_warmup=1, num_samples=2, progress_bar=False)
        chain.run(self.key(0), **data)
        return numpy_tree(chain.get_samples())

    def rates(self, posterior, num, seed=0):
        return posterior.rates(num, rng_key=self.key(seed))

    def mutual_information(self, posterior, num, seed=0):
        return posterior.mutual_information(num, rng_key=self.key(seed))

    def draw_with_tails(self, loc, scale, num, is_heavy):
        """Draws of a host's normal, all with heavy tails or none."""
        normal = importlib.import_module("numpyro.distributions").Normal(loc, scale)
        draw = self.module("densities.tails").draw_with_tails
        keys = self._jax.random.split(self.key(0), num)
        drawn = self._jax.vmap(lambda key: draw(normal, key, is_heavy))(keys)
        return [numpy_tree(part) for part in drawn]

    def to_datatree(self, posterior, num, seed=0, **options):
        return posterior.to_datatree(num, rng_key=self.key(seed), **options)

    def check_calibration(self, amortized, *numbers, seed=0, **options):
        return amortized.check_calibration(*numbers, rng_key=self.key(seed), **options)

    def rational_quadratic(self, value, parameters, num_bins, bound, *, dtype, **options):
        numbers = self._jax.numpy
        with self._jax.enable_x64(dtype == "float64"):
            spline = self.module("densities.splines").rational_quadratic
            image, log_slope = spline(
                numbers.asarray(value, dtype),
                numbers.asarray(parameters, dtype),
                num_bins,
                bound,
                **options,
            )
            return np.asarray(image), np.asarray(log_slope)

    def spline_gradient(self, value, parameters, num_bins, bound):
        """Derivative of the spline by automatic differentiation, at float64."""
        with self._jax.enable_x64(new_val=True):
            numbers, spline = self._jax.numpy, self.module("densities.splines")
            parameters = numbers.asarray(parameters)

            def total(x):
                return spline.rational_quadratic(x, parameters, num_bins, bound)[0].sum()

            return np.asarray(self._jax.grad(total)(numbers.asarray(value)))

    def compiled(self, function):
        """A function of arrays, which does the same faster."""
        return self._jax.jit(function)

    def flat(self, parts):
        """Host arrays joined into one vector."""
        return self._jax.numpy.concatenate([part.ravel() for part in parts])

    def jacobian(self, function, value):
        """Matrix of derivatives of a map of one vector."""
        return np.asarray(self._jax.jacobian(function)(self.array(value)))

    def gradient(self, function, value):
        """Gradient of a scalar function of one array."""
        return np.asarray(self._jax.grad(function)(self.array(value)))

    def density_log_prob(self, density, context, value, index=None):
        @self._jax.jit
        def score(context, value):
            return density(context, index).log_prob(value)

        return numpy_tree(score(self.array(context), self.array(value)))

    def density_draw(self, density, context):
        """Draws of the first site, and the density that came with them."""

        @self._jax.jit
        def draw(context, key):
            distribution = density(context, 0)
            value, inner = distribution.sample_with_intermediates(key)
            return value, distribution.log_prob(value, *([inner] if inner else []))

        return tuple(np.asarray(part) for part in draw(self.array(context), self.key(0)))


class PyroHost:
    """Calls of `pyro_amortize`."""

    name = "pyro"

    def __init__(self):
        self.package = importlib.import_module("pyro_amortize")
        self.models = importlib.import_module("tests.models_pyro")
        self.infer = importlib.import_module("pyro.infer")
        self._pyro = importlib.import_module("pyro")
        self._torch = importlib.import_module("torch")

    def module(self, name):
        return importlib.import_module(f"pyro_amortize.{name}")

    def array(self, value):
        """A host array in the default precision."""
        value = np.array(value)
        dtype = self._torch.get_default_dtype() if value.dtype.kind == "f" else None
        return self._torch.as_tensor(value, dtype=dtype)

    def arrays(self, values):
        return {name: self.array(value) for name, value in values.items()}

    def seed(self, seed):
        self._pyro.set_rng_seed(seed)

    @contextmanager
    def double_precision(self):
        """A context in which everything new has 64 bits."""
        before = self._torch.get_default_dtype()
        self._torch.set_default_dtype(self._torch.float64)
        try:
            yield
        finally:
            self._torch.set_default_dtype(before)

    def draws(self, distribution, num, seed=0):
        """Draws of a distribution of the host."""
        self.seed(seed)
        return numpy_tree(distribution.sample((num,)))

    def guide(self, model, **options):
        return self.package.AmortizedGuide(model, **options)

    def fit(self, model, guide, objective, *, seed=0, **options):
        self._pyro.clear_param_store()
        self.seed(seed)
        # Long trainings are compiled, as they always are in NumPyro; the steps are the same.
        is_long = options.get("num_steps", 3000) >= 300
        options.setdefault("compile", is_long and hasattr(objective, "differentiable_loss"))
        return self.package.fit(model, guide, objective, progress_bar=False, **options)

    def start_from(self, amortized):
        """Options of `fit` that go on with the same guide, which keeps its networks."""
        return {}

    def model_args(self, draw):
        """A sampler of arguments for NPE from `draw(rng)` with a NumPy generator."""

        def sampler():
            seed = int(self._torch.randint(2**31, ()))
            return tuple(
                self.array(value) if isinstance(value, np.ndarray) else value
                for value in draw(np.random.default_rng(seed))
            )

        return sampler

    def trace_elbo(self, num_particles=1):
        return self.infer.Trace_ELBO(
            num_particles=num_particles, vectorize_particles=num_particles > 1
        )

    def simulate(self, model, num, *, seed=0, **options):
        self.seed(seed)
        return self.package.simulate(model, num, **options)

    def run(self, model, seed=0):
        """One run of a model: values and log densities by sample site."""
        self.seed(seed)
        trace = importlib.import_module("pyro.poutine").trace(model).get_trace()
        trace.compute_log_prob()
        return {
            name: (numpy_tree(site["value"]), numpy_tree(site["log_prob"]))
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
        }

    def truncated_prior(self, model, amortized, *args, seed=0, **options):
        self.seed(seed)
        return self.package.truncated_prior(model, amortized.guide, *args, **options)

    def simulate_truncated(self, truncated, num, seed=0):
        self.seed(seed)
        return truncated.simulate(num)

    def fit_sequential(self, model, guide, *args, seed=0, **options):
        self._pyro.clear_param_store()
        self.seed(seed)
        return self.package.fit_sequential(model, guide, *args, progress_bar=False, **options)

    def build_density(self, spec, num_sites, event_size, context_size, seed=0, support=()):
        self.seed(seed)
        return spec.build(num_sites, event_size, context_size, *support)

    def scrambled_density(self, density, scale=0.5):
        """The same networks with random weights."""
        rng = np.random.default_rng(0)
        with self._torch.no_grad():
            for parameter in density.parameters():
                parameter.add_(self.array(scale * rng.normal(size=tuple(parameter.shape))))
        return density

    def untrained(self, model, guide, *args, **kwargs):
        """The posterior of a guide as it is initialised, without the warning."""
        return self.scrambled(model, guide, *args, scale=1e-9, **kwargs)

    def scrambled(self, model, guide, *args, scale=0.3, seed=0, **kwargs):
        """A guide with random weights: nothing about it is special, its densities are real."""
        guide.setup(*args, **kwargs)
        rng = np.random.default_rng(seed)
        with self._torch.no_grad():
            for parameter in guide.parameters():
                noise = scale * rng.normal(size=tuple(parameter.shape))
                parameter.add_(self.array(noise))
        return self.package.AmortizedPosterior(model, guide)

    def shifted(self, amortized, by):
        """The same guide with the location of its first latent moved, in prior sds or so."""
        vector = amortized.guide.standardisation
        vector[0] += by * vector[1]
        return amortized

    def ensemble(self, members, weights=None):
        """The mixture of trained guides."""
        return self.package.AmortizedPosterior.from_members(members, weights)

    def evaluate(self, objective, amortized, *args):
        """One evaluation of a loss, without gradients."""
        return float(objective.loss(amortized.model, amortized.guide, *args))

    def guide_draws(self, amortized, observations, num, batch_dims=0, seed=0, given=None):
        """Draws of a guide outside any handler, with the members they are from."""
        self.seed(seed)
        observations, given = self.arrays(observations), given and self.arrays(given)
        with self._torch.no_grad():
            draws = amortized.guide.draw(
                (), {}, observations, num_samples=num, batch_dims=batch_dims, given=given
            )
        return numpy_tree(draws.values), numpy_tree(draws.members)

    def guide_log_prob(self, amortized, latents, *args):
        return numpy_tree(amortized.guide.log_prob(self.arrays(latents), *args))

    def conditioned_draws(self, amortized, values, num, *args):
        """Draws of a guide as the host runs it with some of its sites at given values."""
        self.seed(0)
        run = self._pyro.condition(amortized.guide, data=values)
        draws = [numpy_tree(run(*args)) for _ in range(num)]
        return {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}

    def trace_of(self, amortized, names, kwargs):
        """Values and log densities of sites, as the host's own trace of a guide has them."""
        self.seed(0)
        trace = self._pyro.poutine.trace(amortized.guide).get_trace(**kwargs)
        trace.compute_log_prob()
        values = {name: trace.nodes[name]["value"] for name in names}
        densities = {name: trace.nodes[name]["log_prob"] for name in names}
        return numpy_tree(values), numpy_tree(densities)

    def site_fn(self, amortized, name, *args):
        """The distribution of a site in the host's trace of a guide."""
        self.seed(0)
        return self._pyro.poutine.trace(amortized.guide).get_trace(*args).nodes[name]["fn"]

    def decoder(self, in_dim, out_dim, seed=0, **options):
        self.seed(seed)
        return self.package.InverseLipschitzDecoder(in_dim, out_dim, **options)

    def parameters(self, network):
        """Arrays of a network by name, `outer.weights.0`, in order."""
        return numpy_tree(dict(network.named_parameters()))

    def with_parameters(self, network, values):
        """The network with these arrays, by name."""
        network.load_state_dict({name: self.array(each) for name, each in values.items()})
        return network

    def network_gradients(self, network, inputs):
        """Gradients of the mean square of what it gives, by parameter."""
        network.zero_grad()
        (network(self.array(inputs)) ** 2).mean().backward()
        return {name: numpy_tree(each.grad) for name, each in network.named_parameters()}

    def apply(self, network, inputs):
        """What a network gives, without gradients."""
        with self._torch.no_grad():
            return network(self.array(inputs)).numpy()

    def standardisation(self, amortized):
        """The effective constants of a guide, as one vector."""
        return numpy_tree(amortized.guide.standardisation)

    def weights(self, amortized):
        return numpy_tree(dict(amortized.guide.named_parameters()))

    def site_log_probs(self, amortized, args, latents, observations, batch_dims=1):
        found = amortized.guide.site_log_probs(
            args, {}, self.arrays(latents), self.arrays(observations), batch_dims=batch_dims
        )
        return numpy_tree(found)

    def site_losses(self, amortized, latents, observations, seed=0):
        """What training at given values makes small, with one leading axis."""
        self.seed(seed)
        given = (), {}, self.arrays(latents), self.arrays(observations)
        return numpy_tree(amortized.guide.site_losses(*given, batch_dims=1))

    def training_loss(self, distribution, value, seed=0):
        self.seed(seed)
        return numpy_tree(distribution.training_loss(self.array(value)))

    def bank_loss(self, objective, model, amortized):
        """The loss on all simulations held out of the objective's bank."""
        return float(objective.bank_loss(model, amortized.guide))

    def sample(self, posterior, num, seed=0):
        self.seed(seed)
        return numpy_tree(posterior.sample(num))

    def log_prob(self, posterior, latents):
        return numpy_tree(posterior.log_prob(self.arrays(latents)))

    def log_joint(self, posterior, latents):
        return numpy_tree(posterior.log_joint(self.arrays(latents)))

    def importance_sample(self, posterior, num, seed=0, **options):
        self.seed(seed)
        return posterior.importance_sample(num, **options)

    def diagnose(self, posterior, num, seed=0, **options):
        self.seed(seed)
        return posterior.diagnose(num, **options)

    def simulated_contexts(self, amortized, num, seed=0, **options):
        self.seed(seed)
        return amortized.simulated_contexts(num, **options)

    def ood_score(self, posterior, skip, num, seed=0):
        self.seed(seed)
        return posterior.ood_score(skip, num_samples=num)

    def sensitivity(self, posterior, radii, seed=0, **options):
        self.seed(seed)
        return posterior.sensitivity(radii, **options)

    def nuts(self, posterior, num, seed=0, **options):
        self.seed(seed)
        return posterior.nuts(num, **options)

    def space(self, posterior):
        """The coordinates in which `nuts` runs."""
        self.seed(0)
        return self.module("standard_space").find_space(posterior._conditioned)

    def space_latents(self, space, points):
        """Values of latents and log determinants at points of a space."""
        return numpy_tree(space.latents(self.array(points)))

    def space_target(self, posterior, space, points):
        """The log density that `nuts` follows."""
        target = self.module("standard_space").log_target(posterior._conditioned, space)
        return numpy_tree(target(self.array(points)))

    def neutra_density(self, posterior, point, *args, **data):
        """Log joint density of the model under the host's NeuTraReparam, at one point of noise."""
        poutine = importlib.import_module("pyro.poutine")
        neutra = importlib.import_module("pyro.infer.reparam").NeuTraReparam(posterior.auto_guide)
        model = poutine.reparam(posterior.guide.model, config=lambda _: neutra)
        name = next(iter(neutra.guide.prototype_trace.iter_stochastic_nodes()))[0]
        given = {f"{name}_shared_latent": self.array(point)}
        trace = poutine.trace(self._pyro.condition(model, data=given)).get_trace(*args, **data)
        return float(trace.log_prob_sum().detach())

    def short_chain(self, model, values, **data):
        """A few transitions of the host's own NUTS started at given values."""
        autoguide = importlib.import_module("pyro.infer.autoguide")
        strategy = autoguide.init_to_value(values=self.arrays(values))
        kernel = self.infer.NUTS(model, init_strategy=strategy)
        chain = self.infer.MCMC(kernel, 2, 1, disable_progbar=True)
        chain.run(**data)
        return numpy_tree(chain.get_samples())

    def rates(self, posterior, num, seed=0):
        self.seed(seed)
        return posterior.rates(num)

    def mutual_information(self, posterior, num, seed=0):
        self.seed(seed)
        return posterior.mutual_information(num)

    def draw_with_tails(self, loc, scale, num, is_heavy):
        """Draws of a host's normal, all with heavy tails or none."""
        self.seed(0)
        normal = importlib.import_module("pyro.distributions").Normal(loc, scale).expand([num])
        flags = self._torch.full((num,), is_heavy)
        drawn = self.module("densities.tails").draw_with_tails(normal, flags)
        return [numpy_tree(part) for part in drawn]

    def to_datatree(self, posterior, num, seed=0, **options):
        self.seed(seed)
        return posterior.to_datatree(num, **options)

    def check_calibration(self, amortized, *numbers, seed=0, **options):
        self.seed(seed)
        return amortized.check_calibration(*numbers, **options)

    def rational_quadratic(self, value, parameters, num_bins, bound, *, dtype, **options):
        spline = self.module("densities.splines").rational_quadratic
        dtype = getattr(self._torch, dtype)
        arrays = (self._torch.tensor(np.array(part), dtype=dtype) for part in (value, parameters))
        image, log_slope = spline(*arrays, num_bins, bound, **options)
        return image.numpy(), log_slope.numpy()

    def spline_gradient(self, value, parameters, num_bins, bound):
        """Derivative of the spline by automatic differentiation, at float64."""
        spline = self.module("densities.splines").rational_quadratic
        value = self._torch.as_tensor(value).clone().requires_grad_()
        image, _ = spline(value, self._torch.as_tensor(parameters), num_bins, bound)
        return self._torch.autograd.grad(image.sum(), value)[0].numpy()

    def compiled(self, function):
        """A function of arrays, as it is."""
        return function

    def flat(self, parts):
        """Host arrays joined into one vector."""
        return self._torch.cat([part.reshape(-1) for part in parts])

    def jacobian(self, function, value):
        """Matrix of derivatives of a map of one vector."""
        return self._torch.autograd.functional.jacobian(function, self.array(value)).numpy()

    def gradient(self, function, value):
        """Gradient of a scalar function of one array."""
        value = self.array(value).requires_grad_()
        return self._torch.autograd.grad(function(value), value)[0].numpy()

    def density_log_prob(self, density, context, value, index=None):
        found = density(self.array(context), index).log_prob(self.array(value))
        return numpy_tree(found)

    def density_draw(self, density, context):
        """Draws of the first site, and the density that came with them."""
        self.seed(0)
        distribution = density(self.array(context), 0)
        value = distribution()  # reparameterised where it can be
        return numpy_tree(value), numpy_tree(distribution.log_prob(value))


def small(host, **options):
    """Options of a guide with small networks and normal densities: a third of the compilation."""
    package = host.package
    defaults = {
        "embedding": package.PlateEmbedding(8, (16,), num_rounds=1),
        "densities": package.NormalDensity(hidden_dims=(16,)),
    }
    return defaults | options


def small_guide(host, model, **options):
    """A guide with these networks."""
    return host.guide(model, **small(host, **options))


@cache
def host(name):
    """The one adapter of a backend, `"pyro"` or `"numpyro"`."""
    return {"pyro": PyroHost, "numpyro": NumPyroHost}[name]()
