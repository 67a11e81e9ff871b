"""One file per graph: what differs from the plain VAE in its graph gets a file here."""
