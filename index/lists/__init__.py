"""Posting lists with 4-bit codes and int8 rows: what every index that files rows in lists is made of.

The routes differ in how a row finds its lists, and how a query does: `soar` by centroids, `ehi` by a learned tree.
"""
