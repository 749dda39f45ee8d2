"""The commands of the command line, by what they are about. `pipelines.cli` puts them together."""
