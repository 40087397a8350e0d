"""Order, parents and pooling: pure functions of names and edges."""

import pytest


@pytest.fixture
def ordering(host):
    return host.module("ordering")


def test_order_puts_event_plates_first_then_fewer_then_smaller_plates(ordering):
    plates = {"a": ("big",), "b": (), "c": ("small",), "d": (), "e": ("big", "small"), "f": ()}
    folded = dict.fromkeys(plates, ()) | {"f": ("features",)}
    order = ordering.order_latents(list(plates), plates, folded, {"big": 9, "small": 2})
    assert order == ("f", "b", "d", "c", "a", "e")


def test_order_of_equal_sites_is_that_of_the_model(ordering):
    names = ["zeta", "alpha", "mid"]
    empty = dict.fromkeys(names, ())
    assert ordering.order_latents(names, empty, empty, {}) == tuple(names)


def test_paths_come_forward_and_before_their_ends(ordering):
    """The model has them backward and after; others keep their places."""
    paths = {"z_2", "z_1", "w_1"}
    plates = {"z": (), "z_2": (), "z_1": (), "w": ("rows",), "w_1": ("rows",), "a": ()}
    empty = dict.fromkeys(plates, ())
    order = ordering.order_latents(list(plates), plates, empty, {"rows": 3}, paths)
    assert order == ("z_1", "z_2", "z", "a", "w_1", "w")


CHAIN = {"a": set(), "b": {"a"}, "c": {"b"}, "y": {"c"}}
COLLIDER = {"a": set(), "b": set(), "y": {"a", "b"}}
SEPARATE = {"a": set(), "b": set(), "x": {"a"}, "y": {"b"}}


@pytest.mark.parametrize(
    ("dependencies", "order", "name", "expected"),
    [
        (CHAIN, ("a", "b", "c"), "b", ("a",)),
        (CHAIN, ("a", "b", "c"), "c", ("b",)),  # a is screened off by b
        (CHAIN, ("c", "b", "a"), "a", ("b",)),
        (CHAIN, ("b", "a", "c"), "c", ("b",)),
        (CHAIN, ("a", "c", "b"), "c", ("a",)),  # joined through b, which is later
        (COLLIDER, ("a", "b"), "b", ("a",)),  # explaining away
        (SEPARATE, ("a", "b"), "b", ()),
    ],
)
def test_needed_parents(ordering, dependencies, order, name, expected):
    assert ordering.needed_parents(name, order, dependencies) == expected


def test_moral_graph_marries_parents(ordering):
    graph = ordering.moral_graph(COLLIDER)
    assert graph == {"a": {"b", "y"}, "b": {"a", "y"}, "y": {"a", "b"}}


def test_coupled_through_a_site_outside_the_plate(ordering):
    dependencies = {"u": set(), "y": {"u"}, "total": {"u"}}
    plates = {"u": ("rows",), "y": ("rows",), "total": ()}
    reach = {name: set(own) for name, own in plates.items()}
    coupled = ordering.coupled_through("u", ("u",), dependencies, plates, reach)
    assert coupled == ("total", "rows")
    reach["total"] = {"pupils", "rows"}  # an index vector leads back to the rows
    assert ordering.coupled_through("u", ("u",), dependencies, plates, reach) is None


@pytest.fixture
def levels(host):
    return host.module("levels")


def test_pooling_goes_by_the_plate_that_fewest_latents_carry(levels):
    dims = {"g": -2, "n": -1}

    def chain(own, latent_plates):
        return [level.plates for level in levels.pooling_levels(own, latent_plates, dims)]

    assert chain(("g", "n"), [(), ("g",)]) == [("g", "n"), ("g",), ()]
    assert chain(("g", "n"), [(), ("n",)]) == [("g", "n"), ("n",), ()]
    assert chain(("g", "n"), [()]) == [("g", "n"), ("g",), ()]  # a tie: the rightmost
    assert chain((), [()]) == [()]
    # Crossed: both margins, and the whole from each of them.
    assert chain(("g", "n"), [("g",), ("n",)]) == [("g", "n"), ("g",), ("n",), (), ()]


def test_index_vectors_lead_from_level_to_level(levels):
    dims = {"pupils": -1, "classes": -1, "schools": -1}
    groups = [
        levels.GroupInfo("class_of", "classes", "pupils"),
        levels.GroupInfo("school_of", "schools", "classes"),
    ]
    assert levels.closure(("pupils",), groups) == set(dims)
    for latent_plates in ([("schools",)], [("schools",), ("classes",)]):
        found = levels.pooling_levels(("pupils",), latent_plates, dims, groups)
        assert [level.plates for level in found] == [("pupils",), ("classes",), ("schools",), ()]
        assert [level.group for level in found] == [None, "class_of", "school_of", None]
