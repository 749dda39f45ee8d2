"""Small trained copies of the models, and the drawn world with exact truth that they were trained on."""
