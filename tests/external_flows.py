"""Flows of zuko and flowjax, for tests of the adapter to them."""

from importlib import import_module


def imported(host, name):
    """A library that leaves the validation of torch's distributions as it was."""
    if host.name == "numpyro":
        return import_module(name)
    distribution = import_module("torch.distributions").Distribution
    before = distribution._validate_args
    try:
        return import_module(name)
    finally:
        distribution.set_default_validate_args(before)


def external_spline(host, num_transforms=3, width=32):
    """A specification with neural spline flows of the host's library: zuko or flowjax."""
    if host.name == "pyro":
        flows = imported(host, "zuko.flows")

        def make(size, context):
            return flows.NSF(
                size, context, transforms=num_transforms, hidden_features=(width, width)
            )
    else:
        flows, distributions = (
            import_module("flowjax.flows"),
            import_module("flowjax.distributions"),
        )
        spline = import_module("flowjax.bijections").RationalQuadraticSpline
        jnp = import_module("jax.numpy")

        def make(size, context, key):
            return flows.coupling_flow(
                key,
                base_dist=distributions.Normal(jnp.zeros(size)),
                transformer=spline(knots=8, interval=5),
                cond_dim=context,
                flow_layers=num_transforms,
                nn_width=width,
            )

    return host.package.ExternalFlowDensity(make)
