"""WHAT IS READ: documents, tokens, rows, and the order in which a run uses them."""
