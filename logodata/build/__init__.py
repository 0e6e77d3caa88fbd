"""A build: from documents and questions to a data set."""
