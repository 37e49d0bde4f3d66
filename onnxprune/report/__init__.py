"""What a run did: plain data (`summary`), shown on a terminal (`terminal`)."""
