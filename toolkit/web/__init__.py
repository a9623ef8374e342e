"""A small web server for people and programs of one site: who may come in, and how much each may take."""
