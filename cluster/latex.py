"""Text as LaTeX prints it."""

from __future__ import annotations

_SIGNS = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"},
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(text: str) -> str:
    """`text` with every sign that means something to LaTeX escaped."""
    return "".join(_SIGNS.get(sign, sign) for sign in text)
