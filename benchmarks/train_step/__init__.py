"""How long does a step of training take, ours and torch's, on the same batches in one run?"""
