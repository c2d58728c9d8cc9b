"""`deqa`: DeQA-Score (You et al., "Teaching Large Language Models to Regress Accurate Image Quality Scores using Score
Distribution", CVPR 2025), the paper's reward, in our own implementation of its network.

It sees 448 x 448 pixels: of larger pictures fine ringing and noise are gone before it looks, which `crops` is for. Of
pictures that aren't square the grey filling is seen, too.
"""

from __future__ import annotations

from reward_service.scorers.mplug_owl2.scorer import OwlScorer


class Deqa(OwlScorer):
    """Scores 1 (bad) to 5 (excellent)."""

    name = "deqa"
