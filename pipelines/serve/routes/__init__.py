"""The routes, one kind of question a file."""
