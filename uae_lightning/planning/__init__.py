"""`uae plan`: what a run needs of a card, found out by running its own code on tensors without data.

integers    values of integers, which steer models, where floats have none
meter       bytes alive and FLOPs done, phase by phase
weightless  a stage built without weights, made runnable
quantized   stand-ins for bitsandbytes layers, of the same size and traffic
text        a stand-in for the tokenizer, and captions of a given length
generation  the cost of generating captions
codes       and of codes
shortcuts   equal calls are run once and then only counted
step        one optimiser step of each stage, and a validation
sharding    what of it stays on a device when there are several
stage_plan  the plan of one stage
report      the table
command     the command line
"""
