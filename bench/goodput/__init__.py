"""Parts of `bench/gateway_goodput.py`."""
