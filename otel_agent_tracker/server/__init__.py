"""The tracker: a REST API and a web page over one SQL database."""
