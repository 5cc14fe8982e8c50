"""One module for each kind of resource: ``read`` from a document, ``spec`` back into one. Pure."""
