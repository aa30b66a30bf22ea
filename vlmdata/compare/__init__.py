"""Whether curation helps: the same model, the same number of samples seen, different selections of one pool (DataComp,
Gadre et al. 2023, arXiv:2304.14108). `flows/compare.py` runs it.
"""
