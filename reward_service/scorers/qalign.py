"""`qalign`: Q-Align's OneAlign (Wu et al., "Q-Align: Teaching LMMs for Visual Scoring via Discrete Text-Defined
Levels", ICML 2024): DeQA-Score's network and question with other weights.

Its published program weighs the levels 1, 0.75, 0.5, 0.25, 0, its Hugging Face version 5 to 1: `level_weights` chooses.
"""

from __future__ import annotations

from reward_service.scorers.mplug_owl2.scorer import OwlScorer


class QAlign(OwlScorer):
    """Scores 1 (bad) to 5 (excellent), or as `level_weights` says."""

    name = "qalign"
