"""The first screen of the README runs as it stands, for both hosts, and prints what it shows."""

import re
from pathlib import Path

import pytest

from tests.conftest import require

README = Path(__file__).parents[2] / "README.md"
PRINTED = re.compile(
    r"(tensor\()?\[( *-?\d+\.\d+,?\s*){8}\]\)?\n"
    r"Guide's own draws: (good|usable only after weighting|poor) "
    r"\(ESS fraction [01]\.\d\d of 3600 draws, [01]\.\d\d for local latents\)\.\n"
    r"Weighted draws: (reliable|unreliable) \(Pareto k-hat .+, threshold 0\.70\)\.\n"
    r"Log evidence: -\d+\.\d+ ± \d+\.\d+ nats\.\n"
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def pyro_block():
    return blocks("python")[0]


def numpyro_block():
    """The Pyro block with the changes of the diff that the README gives for NumPyro."""
    block, lines = pyro_block(), blocks("diff")[0].splitlines()
    removed = [line[1:] for line in lines if line.startswith("-")]
    added = [line[1:] for line in lines if line.startswith("+")]
    for old, new in zip(removed, added, strict=True):
        assert block.count(f"{old}\n") == 1, f"the block has no line {old!r}"
        block = block.replace(f"{old}\n", f"{new}\n")
    return block


BLOCKS = {"pyro": pyro_block, "numpyro": numpyro_block}


def run(source, num_steps, capsys):
    source, num_changed = re.subn(r"num_steps=\d+", f"num_steps={num_steps}", source)
    assert num_changed == 1
    exec(compile(source, str(README), "exec"), {})
    return capsys.readouterr().out


@pytest.mark.parametrize("backend", BLOCKS)
def test_block_runs_and_prints_what_it_shows(backend, capsys):
    require(backend)
    printed = run(BLOCKS[backend](), 30, capsys)
    assert PRINTED.fullmatch(printed), printed


def test_first_screen():
    assert len(pyro_block().splitlines()) <= 18
    assert len(README.read_text().splitlines()) <= 120
    shown = blocks("text")[0]
    assert PRINTED.fullmatch(shown), shown


def test_numpyro_block_has_nothing_of_pyro_left():
    assert not re.search(r"torch|(?<!num)pyro", numpyro_block())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BLOCKS)
def test_shown_result_is_what_comes_out(backend, capsys):
    """Effects within 0.5 of those shown, a tenth of their posterior standard deviations."""
    require(backend)
    num_steps = int(re.search(r"num_steps=(\d+)", pyro_block()).group(1))
    printed = run(BLOCKS[backend](), num_steps, capsys)

    def effects(text):
        return [float(number) for number in re.findall(r"-?\d+\.\d+", text.split("]")[0])]

    assert effects(printed) == pytest.approx(effects(blocks("text")[0]), abs=0.5)
    assert "Guide's own draws: good" in printed
