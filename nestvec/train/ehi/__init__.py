"""The learned tree (EHI): a router, and where wanted an adapter, trained from pairs of queries and documents.

EHI: Kumar et al., "EHI: End-to-end Learning of Hierarchical Index for Efficient Dense Retrieval", arXiv 2310.08891.
"""
