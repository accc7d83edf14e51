"""Live tests: real agent frameworks, each in an environment of its own, against a model that is a stub."""
