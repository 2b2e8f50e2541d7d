"""How well an encoder and the engine rank, on judged sets of queries: nDCG@10, MRR@10, R@100."""

from nestvec.evaluation.files import JudgedSet, documents, read_set
from nestvec.evaluation.measure import Evaluation, Row, evaluate

__all__ = ["Evaluation", "JudgedSet", "Row", "documents", "evaluate", "read_set"]
