"""What a file or a machine is: graphs, bundles, engines, known issues."""
