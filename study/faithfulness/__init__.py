"""How much a network's saliency maps say about its decisions, under named protocols."""

from study.faithfulness.report import FaithfulnessReport, MethodScores
from study.faithfulness.score import evaluate_faithfulness, score_network

__all__ = ["FaithfulnessReport", "MethodScores", "evaluate_faithfulness", "score_network"]
