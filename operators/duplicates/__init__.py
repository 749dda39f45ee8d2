"""What is a copy of what, among very many images."""
