"""The Docker stack: images, secrets, up, down; status and stop serve `make up` as well. Standard library only."""
