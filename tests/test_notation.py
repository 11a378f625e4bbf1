"""One symbol, one meaning: book/notation.md has a row for each symbol, and the book's formulas keep to it."""

import ast
import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "book/notation.md").read_text()
TEXTS = sorted(
    path
    for pattern in (
        "notebooks/*.md",
        "book/*.md",
        "book/contributing/*.md",
        "lessons/*/*.md",
        "robattr/exercises/texts/*.md",
        "README.md",
        "CONTRIBUTING.md",
    )
    for path in ROOT.glob(pattern)
)
CODE = sorted(
    path
    for pattern in ("robattr/**/*.py", "book/_static/*.js", "notebooks/*.md", "lessons/*/*.md")
    for path in ROOT.glob(pattern)
)
# What stands between symbols. A macro that is neither here nor in the table is a symbol without a row.
SIGNS = (
    r"approx|arccos|arcsin|arctan|bar|binom|blacksquare|[bB]ig[lr]?|cdot|cos|cot|dots|ell|d?t?frac|ge|hat|in|infty|int|"
    r"langle|le|left|ln|log|lVert|mapsto|max|min|ne|nabla|odot|pm|prod|q?quad|rangle|right|rVert|sim|sin|sqrt|sum|tan|"
    r"tilde|times|to|top"
)
NAMES = {"d", "F"}  # single letters that stand upright: the differential, and the norm of Frobenius
# A letter in a place that only another meaning has.
CLASHES = {
    r"(?<![\\\w{-])H\s*(\\,)?\s*(\\delta|\\sigma|\(x|v\b|\^\{-1\})": "H is a length; the Hessian is \\nabla^2 f_y",
    r"(?<![\\\w])I(_|\(z)|N\(0, [^)]*(?<![\w{])I\b|[A-Z] = I\b": "I is the heatmap; influence is \\mathcal I, "
    "the identity \\mathrm{Id}",
    r"\\lVert \\delta \\rVert(_2)? \\le \\epsilon(?!_)|\\epsilon(?!_) ?/ ?(2?r\b|\\sigma)": "a length is \\epsilon_2",
    r"\\rVert_\\infty \\le \\epsilon_2": "the largest change of one value is \\epsilon",
    r"(?<!\\hat)\\lambda(?!_)|\\lambda_[a-z]|\\hat\\lambda": "\\lambda is a weight and says of what",
    r"\\sigma(_|\(|')": "\\sigma is the noise's standard deviation; a channel's is \\mathrm{std}_c",
    r"\\(alpha|eta)(\\,)? ?\\(operatorname|text|mathrm)\{sign\}|\\alpha \(x": "the step is \\tau",
    r"\\(sin|cos|tan)\\theta": "\\theta are parameters",
    r"(?<![\\\w])L\([a-z]|\^\{?\d*L\b": "L is a likelihood ratio; the loss is \\mathcal L",
    r"(?<![\\\w])z_|\+ z\b": "z is \\epsilon_2 / \\sigma",
    r"\^\{?p\b": "p is a share of a ball",
    r"(?<![\\\w])C(?!\(x|[\w}])": "C(x) is the center of mass",
    r"(?<![\\\w])[dl]\(|\\ell(?!_)": "d is a number of values",
    r"_k\b|_\{\w*k\w*\}": "k is the number of top pixels",
    r"(?<=[ ,])e(?![\w^}])": "e is Euler's number",
    r"\\kappa ?/ ?\\beta|\\frac ?\\kappa ?\\beta": "\\beta is the sharpness of a Softplus",
}
RETIRED = {
    r"\|\|H\b(?! =)|\bH v\b|\bH delta\b": "the Hessian is Hess",
    r"\bI\(z_|\bI_\{": "I is the heatmap",
    r"(?<!\.)\blam\b(?! =)": "the spread is Lambda",
    r"\bx \+ z\b": "a change of the image is delta",
}


def table(text: str) -> tuple[list[str], set[str]]:
    """The symbols of notation.md's table, as they stand there, and the letters without a meaning of their own."""
    part = text[text.index("## Symbols") : text.index("## Conventions")]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| $")]
    symbols = [re.split(r"\(| = ", each)[0].strip() for row in rows for each in re.findall(r"\$(.+?)\$", row)]
    loose = re.search(r"\$\$(.*?)\$\$", part, re.S)
    return symbols, set(loose[1].replace(r"\;", " ").split()) if loose else set()


def formulas(text: str) -> list[str]:
    """All math of a text in MyST, with that in the strings of its code cells."""
    found = re.findall(r"^```\{math\}\n(?::label:.*\n)?(.*?)^```", text, re.S | re.M)
    cells = r"^( *)```(?:\{code-cell\}|python|shell|text|console).*?^\1```[ ]*$"
    for cell in re.finditer(cells, text, re.S | re.M):
        found += [each.replace("\\\\", "\\") for each in re.findall(r"\$([^$\n]*\\\\[^$\n]*)\$", cell[0])]
    text = re.sub(cells, "", text, flags=re.S | re.M)
    found += re.findall(r"\$\$(.*?)\$\$", text, re.S)
    text = re.sub(r"\$\$.*?\$\$|`[^`\n]+`", "", text, flags=re.S)
    return found + re.findall(r"(?<!\\)\$([^$]+?)\$", text)


def complaints(text: str, symbols: list[str], loose: set[str]) -> list[str]:
    """What a text's formulas have that the table does not, and what they use for something else.

    Only the pages that define both epsilons, notation and glossary, may have both.
    """
    # Of f_y and of \lambda_{\cos} the letter counts; the rules say which subscripts there are.
    known = loose | {_letter(each) for each in symbols}
    known |= {each.lstrip("\\") for each in known}
    found = []
    epsilons = set(re.findall(r"\\epsilon(?:_2)?(?!\w)", " ".join(formulas(text))))
    if len(epsilons) > 1 and not re.search(r"^(# Notation|# Glossary)$", text, re.M):
        found.append(r"both \epsilon and \epsilon_2")
    for formula in formulas(text):
        plain = re.sub(r"\\(?:text|operatorname)\*?\{[^}]*\}|\\(?:begin|end)\{[^}]*\}", " ", formula)
        fonts = r"\\(mathrm|mathcal|mathbb) ?\{?(\w+)\}?"
        plain = re.sub(fonts, lambda m: "" if _upright(m, known) else f"\\{m[1]}{m[2]}", plain)
        for name in re.findall(r"\\([A-Za-z]+)|([A-Za-z])", plain):
            symbol = name[0] or name[1]
            if symbol not in known and not re.fullmatch(SIGNS, symbol):
                found.append(f"{symbol} has no row: {formula.strip()}")
        one = re.sub(r"\\math(cal|bb) ", r"\\math\1", formula)  # \mathcal L is not L
        found += [f"{said}: {formula.strip()}" for clash, said in CLASHES.items() if re.search(clash, one)]
    return found


def _letter(symbol: str) -> str:
    return re.sub(r"_.*", "", symbol.removeprefix(r"\hat ").removeprefix(r"\nabla^2 "))


def _upright(match: re.Match[str], known: set[str]) -> bool:
    if match[1] == "mathrm":
        return len(match[2]) > 1 or match[2] in NAMES
    return f"\\{match[1]} {match[2]}" in known or match[0] in (r"\mathbb R", r"\mathbb{R}")


def greek(text: str, symbols: list[str], loose: set[str]) -> list[str]:
    """Greek letters in labels and in words that a cell writes: each needs a row, and a length is no bare epsilon."""
    known = loose | {re.sub("_.*", "", each) for each in symbols if not each.startswith(r"\lambda")}
    letters = sorted(set(re.findall("[α-ωΑ-Ω]", text)))
    found = [f"{each} has no row" for each in letters if _macro(each) not in known]
    return found + [f"ε is no l2 length: {each}" for each in re.findall(r"ε(?!₂)[^\n\"']*l2[^\n\"']*", text)]


def _macro(letter: str) -> str:
    _, kind, _, name = unicodedata.name(letter).replace("LAMDA", "LAMBDA").split()
    return "\\" + (name.title() if kind == "CAPITAL" else name.lower())


def retired(source: str) -> list[str]:
    """What docstrings wrote before."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    words = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    return [said for text in words for old, said in RETIRED.items() if re.search(old, text)]


def test_each_symbol_has_one_row() -> None:
    symbols, loose = table(TABLE)
    assert len(symbols) > 40
    assert len(symbols) == len(set(symbols))
    assert not {each for each in symbols if each in loose}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_formulas_keep_to_the_table(path: Path) -> None:
    assert complaints(path.read_text(), *table(TABLE)) == []


def test_labels_and_docstrings_keep_to_the_table() -> None:
    found = {}
    for path in CODE:
        text = path.read_text()
        said = greek(text, *table(TABLE)) + (retired(text) if path.suffix == ".py" else [])
        if said:
            found[str(path.relative_to(ROOT))] = said
    assert found == {}


def test_each_row_is_used() -> None:
    """And without its row it would be missed."""
    symbols, loose = table(TABLE)
    everything = "\n".join(path.read_text() for path in TEXTS if path.name != "notation.md")
    plain = {_letter(each) for each in symbols if not each.startswith(r"\mathrm")} - loose
    assert len(plain) > 35
    for letter in plain:
        without = [each for each in symbols if _letter(each) != letter]
        name = letter.lstrip("\\").replace(" ", "")
        assert any(said.startswith(f"{name} has no row") for said in complaints(everything, without, loose)), letter


def test_formulas_without_a_symbol_are_missed() -> None:
    """A letter that is loose is not one that has a row."""
    symbols, loose = table(TABLE)
    assert complaints("So $a + G$ is", symbols, loose) == ["G has no row: a + G"]
    assert complaints(r"$\varepsilon$", symbols, loose) == [r"varepsilon has no row: \varepsilon"]
    assert complaints("$a$", symbols, loose - {"a"}) == ["a has no row: a"]
    assert complaints("```python\nx = '$G$'\n```\n`$G$`", symbols, loose) == []


@pytest.mark.parametrize(
    ("where", "now", "then"),
    [
        ("notebooks/06_small_hessian.md", r"\nabla^2 f_y(x + t\delta)", r"H(x + t\delta)"),
        ("notebooks/06_small_hessian.md", r"\\nabla^2 f_y\\,\\delta", r"H\\delta"),
        ("notebooks/02_fragile.md", r"\tau\, \operatorname{sign}", r"\alpha\, \operatorname{sign}"),
        ("notebooks/02_fragile.md", r"\tau\, \operatorname{sign}", r"\eta\, \operatorname{sign}"),
        ("notebooks/02_fragile.md", "x^{(j-1)}", "x^{p-1}"),
        ("notebooks/03_influence.md", r"\mathcal I(x_i, x_t)", "I(z_i, z_t)"),
        ("notebooks/03_influence.md", r"\mathcal L(x_t)", "L(x_t)"),
        ("notebooks/05_not_invariant.md", r"Q_{\ell_2}(f)", r"\ell(f)"),
        ("notebooks/05_not_invariant.md", "c^{2n}", "c^{2L}"),
        ("notebooks/07_aligned_gradients.md", r"g(x + \delta)", "g(x + z)"),
        ("notebooks/07_aligned_gradients.md", r"N(0, \mathrm{Id})", "N(0, I)"),
        ("notebooks/07_aligned_gradients.md", "a_i w_{ij} / u_j", "a_j w_{jk} / z_k"),
        ("notebooks/08_certified.md", r"\le \epsilon_2", r"\le \epsilon"),
        ("notebooks/08_certified.md", r"\kappa \sqrt\Lambda", r"\kappa \sqrt\lambda"),
        ("notebooks/08_certified.md", r"b_i < 1/m", r"\lambda_i < 1/m"),
        ("notebooks/08_certified.md", r"q^\top \Sigma q", r"q^\top C q"),
        ("notebooks/08_certified.md", r"\frac ab", r"\frac\kappa\beta"),
        ("notebooks/08_certified.md", r"\langle h', q \rangle", r"\langle h', e \rangle"),
        ("book/notation.md", r"\mathrm{std}_c", r"\sigma_c"),
        ("book/notation.md", r"S(\beta t)", r"\sigma(\beta t)"),
        ("book/notation.md", r"\sin\varphi", r"\sin\theta"),
        ("book/notation.md", "u_0", "z_0"),
    ],
)
def test_other_meanings_are_seen(where: str, now: str, then: str) -> None:
    text = (ROOT / where).read_text()
    assert now in text
    assert complaints(text.replace(now, then, 1), *table(TABLE)) != []


def test_other_labels_and_docstrings_are_seen() -> None:
    symbols, loose = table(TABLE)
    for label in ('"Λ at most"', '"ε₂ (l2)"', '"ε (1/255)"'):
        assert greek(label, symbols, loose) == []
    assert greek('"λ at most"', symbols, loose) == ["λ has no row"]
    assert greek('"ε (l2, in units)"', symbols, loose) == ["ε is no l2 length: ε (l2, in units)"]
    assert retired('"""Of ``||H v||^2``, and lam."""') == ["the Hessian is Hess", "the spread is Lambda"]
    assert retired('"""Of ``||Hess v||^2``, and ``H = ||h(x)||``."""') == []
