"""How right labels are, against truth: standard definitions, computed by the libraries that define them.

Nothing here knows where labels or truth come from; `pipelines.evaluation.evaluate` and
`operators.miniatures.evaluation` do.
"""
