"""Other vector stores on the same data, asked in the same ways: what `make bench ARGS="--peer NAME"` sets beside the cluster.

Each lives in a virtual environment of its own, where a worker process (`worker.py`) builds and asks it through its own client;
the benchmark tells the worker what to do in lines of JSON. Nothing here is needed to use vectorfleet, and its tests install
none of it.
"""
