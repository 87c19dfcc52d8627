"""The look inside a running model: routed experts, time by kind of node, bare decode speed."""
