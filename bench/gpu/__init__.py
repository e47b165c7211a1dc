"""What does a GPU do under this server that it would not do under a plain loop? `hermetic bench gpu`.

What is measured in which file; sides.py has the loop that all of it is about:

networks.py        what is computed: an MLP, and networks of the shape of ResNet-50 and BERT-base; their files
torch_networks.py  the same as modules of torch
sides.py           a side: batches in, batches out, so many at a time; the loop that measures one
bare.py  ours.py   the two sides: torch's or onnxruntime's own loop, and the worker's runner with copies and wipes
process.py         both sides of one network in a process of its own, which takes turns as it is told
sweep.py           batch sizes and streams, in turns A B A B
served.py          the whole server over mutual TLS, sealed models and several front ends; crowd.py: its callers
utilisation.py     use of the GPU in percent        budget.py: time        document.py: the JSON and its goals
run.py             all of it
"""
