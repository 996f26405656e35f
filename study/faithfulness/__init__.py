"""How much a network's saliency maps say about its decisions, under named protocols."""

from study.faithfulness.score import FaithfulnessReport, MethodScores, evaluate_faithfulness

__all__ = ["FaithfulnessReport", "MethodScores", "evaluate_faithfulness"]
