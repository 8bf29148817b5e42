"""The composition root: builds the parts of a node, and owns its threads and the real clock."""
