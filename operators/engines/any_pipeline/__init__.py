"""Any model behind a pipeline of transformers."""
